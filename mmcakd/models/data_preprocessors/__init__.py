from .named_inputs import NamedInputsPreprocessor

__all__ = ['NamedInputsPreprocessor']
