def test_work_directory_is_exported(trained, run_tool, tmp_path):
    out = tmp_path / 'plain.pth'
    printed = run_tool(
        'tools/model_converters/export_student.py', trained, out
    )
    assert f'{out} and {out.with_suffix(".py")} load in MMPretrain' in printed
    assert out.is_file() and out.with_suffix('.py').is_file()
