from .multi_view_generator import MultiViewGenerator

__all__ = ['MultiViewGenerator']
