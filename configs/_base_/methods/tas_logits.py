# TAS without InfoNCE: student and assistant learn from logits alone.
_base_ = './tas.py'

_base_.distiller.connectors.pop('assistant_to_teacher')
_base_.distiller.connectors.pop('student_to_assistant')
_base_.distiller.connectors.pop('student_to_teacher')
_base_.distiller.distill_losses.pop('loss_nce_teacher_student')
_base_.distiller.distill_losses.pop('loss_nce_teacher_assistant')
_base_.distiller.distill_losses.pop('loss_nce_assistant_student')
_base_.distiller.loss_forward_mappings.pop('loss_nce_teacher_student')
_base_.distiller.loss_forward_mappings.pop('loss_nce_teacher_assistant')
_base_.distiller.loss_forward_mappings.pop('loss_nce_assistant_student')
