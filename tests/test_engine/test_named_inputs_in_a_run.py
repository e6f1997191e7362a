"""A teacher that sees another modality, from files to the exported student."""

from mmengine.runner import Runner
from mmpretrain import get_model


def test_a_teacher_of_grey_images_teaches_a_student_of_coloured(
    short_run, tiny, image_folder
):
    norm = dict(mean=[120.0] * 3, std=[60.0] * 3)
    model = tiny.distillation(
        teachers=dict(
            grey=dict(
                model=tiny.classifier(tiny.resnet(in_channels=1)),
                ckpt='random',
                inputs='grey',
            )
        ),
        distiller=tiny.logit_kd(),
        data_preprocessor=dict(
            type='mmcakd.NamedInputsPreprocessor',
            image=norm | dict(num_classes=tiny.classes),
            grey=dict(mean=[120.0], std=[60.0]),
        ),
    )
    for short in ('teacher', 'teacher_ckpt'):
        del model[short]
    recorders = model['distiller'].pop('teacher_recorders')
    model['distiller']['teacher_recorders'] = dict(grey=recorders)
    cfg = short_run(
        model=model,
        custom_hooks=[
            dict(type='mmcakd.TrainingSetHook'),
            dict(type='mmcakd.ExportStudentHook'),
        ],
    )
    cfg.train_cfg.max_epochs = 1
    folder = str(image_folder / 'train')
    cfg.train_dataloader.dataset.pipeline = [
        dict(type='LoadImageFromFile'),
        dict(
            type='mmcakd.LoadPairedImage',
            name='grey',
            root=folder,
            image_root=folder,
            color_type='grayscale',
        ),
        dict(
            type='mmcakd.SharedTransforms',
            transforms=[dict(type='RandomResizedCrop', scale=64)],
            names=['grey'],
        ),
        dict(type='mmcakd.PackNamedInputs', names=['grey']),
    ]
    runner = Runner.from_cfg(cfg)
    seen = {'student': [], 'grey': []}
    for name, network in (
        ('student', runner.model.student),
        ('grey', runner.model.live_teachers['grey'].model),
    ):
        network.backbone.register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(tuple(args[0].shape))
        )
    runner.train()
    assert seen['grey'] == [(4, 1, 64, 64)] * 5
    assert set(seen['student']) >= {(4, 3, 64, 64)}

    exported = runner.work_dir + '/student.pth'
    student = get_model(exported.replace('.pth', '.py'), pretrained=exported)
    assert type(student.data_preprocessor).__name__ == 'ClsDataPreprocessor'
    assert student.data_preprocessor.mean.flatten().tolist() == norm['mean']
