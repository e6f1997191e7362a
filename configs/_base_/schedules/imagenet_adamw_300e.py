_base_ = './cifar100_adamw_300e.py'

_base_.param_scheduler[1].eta_min = 1e-6

# Decay 0.99996.
custom_hooks = [dict(type='EMAHook', momentum=4e-5, priority='ABOVE_NORMAL')]
