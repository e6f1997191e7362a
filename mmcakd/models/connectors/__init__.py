from .base import BaseConnector
from .cap import CAPConnector
from .teacher_replay import TeacherReplay

__all__ = ['BaseConnector', 'CAPConnector', 'TeacherReplay']
