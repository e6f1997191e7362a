"""What others look for in the classifier that is trained."""

from typing import Any

from mmpretrain.models import BaseClassifier

from .student_weights import adopt_student

#: What hooks, loops and optimizer constructors of MMPretrain look for in the
#: classifier that is trained. In a distillation they find the student's.
OF_THE_STUDENT = (
    'backbone',
    'neck',
    'head',
    'with_neck',
    'with_head',
    'loss_module',
)


class OfTheStudent:
    """Mixin of an algorithm that trains a student, ``architecture``.

    Hooks and optimizer constructors of MMPretrain find the student's parts,
    and a checkpoint of the student alone is loaded into it.
    """

    def __getattr__(self, name: str) -> Any:
        # MMDetection and MMSegmentation read, besides, the names of weights,
        # which they would misread: they begin with `architecture.` here.
        if name in OF_THE_STUDENT:
            student = self.architecture
            if isinstance(student, BaseClassifier):
                return getattr(student, name)
            raise AttributeError(
                f'CrossArchDistill has a {name} only for a classifier of '
                f'MMPretrain; that of this {type(student).__name__} is '
                f'`architecture.{name}`. Layer-wise learning rates of its '
                'package do not know these names: give '
                'paramwise_cfg=dict(custom_keys=...) instead'
            )
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        # E.g. another loss, from `mmpretrain.SwitchRecipeHook`.
        if name in OF_THE_STUDENT:
            setattr(self.architecture, name, value)
        else:
            super().__setattr__(name, value)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Get how deep a parameter is, for layer-wise learning rate decay.

        What is not of the student, such as connectors, comes after its last
        layer and keeps the full learning rate.

        Args:
            param_name (str): Its name in the algorithm.

        Returns:
            tuple[int, int]: The depth of the parameter and the number of
            depths.

        Raises:
            NotImplementedError: The student does not know its depths.
        """
        student = self.architecture
        try:
            return student.get_layer_depth(
                param_name.removeprefix('architecture.')
            )
        except (AttributeError, NotImplementedError) as error:
            net = getattr(student, 'backbone', student)
            raise NotImplementedError(
                'layer-wise learning rate decay asks the student for the '
                f'depth of its layers, which this {type(net).__name__} does '
                "not know: take one that does, such as MMPretrain's ViT, "
                'Swin, BEiT, ConvNeXt or ResNet-50, or remove '
                'optim_wrapper.constructor'
            ) from error

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args, **kwargs
    ) -> None:
        # Of a distillation, or of its student alone, for `load_from`.
        adopt_student(state_dict, prefix, self.architecture)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
