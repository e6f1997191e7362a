_base_ = 'mmpretrain::_base_/default_runtime.py'

# Registers the `mmcakd.` types and makes MMRazor importable.
custom_imports = dict(imports=['mmcakd'], allow_failed_imports=False)

default_hooks = dict(
    # A checkpoint holds student, connectors, optimizer and EMA copies.
    checkpoint=dict(max_keep_ckpts=3, save_best='auto'),
    # A resumed run ends with the same weights as an unbroken one.
    seed=dict(type='mmcakd.SeedByEpochHook'),
    # Losses with a memory learn what the training set holds.
    training_set=dict(type='mmcakd.TrainingSetHook'),
    # The first NaN stops the run before it reaches the weights.
    non_finite=dict(type='mmcakd.NonFiniteHook'),
    # A run that is told to stop saves its state and says how to go on.
    stop=dict(type='mmcakd.CleanStopHook'),
    # Losses that outweigh the labels, and a warm-up longer than training.
    recipe=dict(type='mmcakd.RecipeCheckHook'),
    # At the end, the student alone becomes a plain MMPretrain checkpoint.
    export=dict(type='mmcakd.ExportStudentHook'),
)

randomness = dict(seed=0)
