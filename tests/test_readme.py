"""Every `python` line of the README runs, in order, in an empty folder."""

import re
import shlex
from pathlib import Path

import pytest

from vilmedic_ssl.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]
SHORT = ["num_workers=0", "device=cpu"]
SHORTER = ["trainor.max_steps=3", "trainor.batch_size=16"]


def commands():
    """(verb, arguments) of the lines in the README's bash fences that start with python."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for fence in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
        for line in fence.replace("\\\n", " ").splitlines():
            words = shlex.split(line)
            if words and words[0] == "python":
                yield Path(words[1]).stem, words[2:]


@pytest.mark.slow
@pytest.mark.network
def test_readme_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["download", "phantom"]) == 0  # what `make demo`, the README's first line, leaves
    ran = []
    for verb, arguments in commands():
        more = [*SHORT, *(SHORTER if verb == "train" else [])] if verb != "download" else []
        if "ckpt=last" in arguments:  # the line before stopped after three steps
            more[-2:] = ["trainor.max_steps=5", "trainor.batch_size=16"]
        code = main([verb, *arguments, *more])
        told = capsys.readouterr().err
        assert code == 0, f"{verb} {arguments}: {told}"
        ran.append(verb)
    assert {"download", "train", "ensemble"} <= set(ran)
