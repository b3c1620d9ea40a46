"""Writes docs/cli.md, every command's help as it stands at 80 columns: `python docs/make_cli.py`.

A test compares the page with what this makes; run it after an option has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from pipeline import cli_cache, cli_student, cli_teacher

PAGE = Path(__file__).with_name("cli.md")

_HEAD = """# Every command and option

What `--help` says, made by `docs/make_cli.py`. Flags win over `kd.toml`, which has a table for each command with the long
options as keys (`[kd-student.fit]`, `epochs = 50`), and that wins over the defaults below.

Exit status: 0 done; 2 a setting is missing or wrong; 3 something on disk is damaged, foreign or already there; 4 rows that
cannot be read; 5 the disk refused; 6 a teacher or model answered nonsense; 7 a cloud refused or failed; 8 too little
memory; 130 and 143 stopped by Ctrl-C and SIGTERM. A refusal is one line on standard error that ends with a stable code
in brackets.
"""


def programs() -> dict[str, Any]:
    """The three programs, by name."""
    apps = {"kd-cache": cli_cache, "kd-teacher": cli_teacher, "kd-student": cli_student}
    return {name: typer.main.get_command(module.app) for name, module in apps.items()}


def helps() -> dict[str, str]:
    """What each command line prints for --help, by what is typed before it."""
    found = {}
    for name, program in programs().items():
        context = program.context_class(program, info_name=name, terminal_width=78)
        found[name] = program.get_help(context)
        for verb, command in program.commands.items():
            inner = command.context_class(
                command, info_name=verb, parent=context, terminal_width=78
            )
            found[f"{name} {verb}"] = command.get_help(inner)
    return found


def page() -> str:
    """The page as it should be."""
    parts = [_HEAD]
    for line, text in helps().items():
        depth = "##" if " " not in line else "###"
        parts.append(f"{depth} {line}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
