"""What a reference in a distiller may be: its kinds, keys and their types."""

from typing import Any, Literal

from mmcakd.arguments import check_value, raise_unknown

from .labels import LABELS

#: The key that tells the kind of a reference -> all its keys. A record that
#: goes through a connector is a record; the grammar is MMRazor's.
REFERENCES = dict(
    label=dict(label=Literal[LABELS]),
    recorder=dict(
        recorder=str,
        from_student=bool,
        record_idx=int,
        data_idx=int | str | None,
        connector=str | None,
        connector_idx=int | str | None,
    ),
    connector=dict(connector=str, connector_idx=int | str | None),
)


def check_reference(owner: str, reference: Any) -> None:
    """Check keys and types of a reference, not yet what it names.

    Args:
        owner (str): Where it stands, for the message.
        reference (dict): See
            :class:`mmcakd.models.distillers.CrossArchDistiller`.

    Raises:
        ValueError: It is no reference, has a key that its kind has not, or a
            value of another type.

    Examples:
        >>> from mmcakd.models.distillers.references import check_reference
        >>> stage = dict(recorder='stages', from_student=True, data_idx=3)
        >>> check_reference('student', stage)
        >>> check_reference('student', dict(label='hard', dataidx=1))
        Traceback (most recent call last):
        ...
        mmcakd.arguments.ArgumentError: student: a reference with \
'label' has no key 'dataidx'; it has label
    """
    keys = reference if isinstance(reference, dict) else ()
    kind = next((kind for kind in REFERENCES if kind in keys), None)
    if kind is None:
        raise ValueError(
            f'{owner} should be a dict with recorder, connector or label, but '
            f'got {reference!r}'
        )
    for key, value in reference.items():
        if key not in REFERENCES[kind]:
            known = list(REFERENCES[kind])
            what = f'a reference with {kind!r} has no key'
            raise_unknown(f'{owner}: {what}', key, known)
        check_value(owner, key, value, REFERENCES[kind][key])
    if kind == 'recorder' and 'from_student' not in reference:
        raise ValueError(
            f'{owner} names a recorder; say whose by from_student=True or '
            'False'
        )
