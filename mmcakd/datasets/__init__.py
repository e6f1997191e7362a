from .rendered import CLASSES, RenderedObject, Scene, render_scene

__all__ = ['CLASSES', 'RenderedObject', 'Scene', 'render_scene']
