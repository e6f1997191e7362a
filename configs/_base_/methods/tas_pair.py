# TAS without its assistant: the student learns from the teacher alone.
_base_ = './tas.py'

_base_.distiller.connectors.pop('assistant')
_base_.distiller.connectors.pop('assistant_to_teacher')
_base_.distiller.connectors.pop('student_to_assistant')
_base_.distiller.distill_losses.pop('loss_nce_teacher_assistant')
_base_.distiller.distill_losses.pop('loss_nce_assistant_student')
_base_.distiller.distill_losses.pop('loss_ofa_teacher_assistant')
_base_.distiller.distill_losses.pop('loss_ofa_assistant_student')
_base_.distiller.distill_losses.pop('loss_assistant')
_base_.distiller.loss_forward_mappings.pop('loss_nce_teacher_assistant')
_base_.distiller.loss_forward_mappings.pop('loss_nce_assistant_student')
_base_.distiller.loss_forward_mappings.pop('loss_ofa_teacher_assistant')
_base_.distiller.loss_forward_mappings.pop('loss_ofa_assistant_student')
_base_.distiller.loss_forward_mappings.pop('loss_assistant')
