"""The completion of the command line, for bash, zsh and fish.

Contract: ``bash(parser)``, ``zsh(parser)`` and ``fish(parser)`` return the text of a file that
the shell loads by the name of the program.  Each completes the commands, the options of a
command, the choices of an option, and the names of files and directories.  Pure.

How this works: ``commands_of`` and ``options_of`` read argparse's parsers.  The name of a value
tells whether it is a file (``FILE``, ``PATH``, ``PROGRAM``) or a directory (``DIR``,
``DIRECTORY``).

Roads not taken: shtab has no fish, does not complete the names of files without marks in the
parsers, and its version of Debian 12 shows the first line of a command's description, broken off.

Sources: bash(1) (programmable completion), zshcompsys(1), fish's complete(1).
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

_FILES: Final = ("FILE", "PATH", "PROGRAM")
_DIRECTORIES: Final = ("DIR", "DIRECTORY")


@dataclass(frozen=True)
class Option:
    """An option or a positional argument.

    Attributes:
        names: of an option; () of a positional argument.
        value: the name of its value, "" if it has none.
        help: one sentence.
        choices: the allowed values; () for any.
        is_value_optional: whether the option may stand without its value.
        is_repeatable: whether it may be given again.
    """

    names: tuple[str, ...]
    value: str
    help: str
    choices: tuple[str, ...] = ()
    is_value_optional: bool = False
    is_repeatable: bool = False

    @property
    def is_file(self) -> bool:
        """Whether its value is the name of a file."""
        return self.value in _FILES

    @property
    def is_directory(self) -> bool:
        """Whether its value is the name of a directory."""
        return self.value in _DIRECTORIES

    @property
    def takes_value(self) -> bool:
        """Whether a word has to follow it."""
        return bool(self.names and self.value) and not self.is_value_optional


@dataclass(frozen=True)
class Subcommand:
    """A command: its parser, and its line in the help of the program."""

    parser: argparse.ArgumentParser
    summary: str


def commands_of(parser: argparse.ArgumentParser) -> dict[str, Subcommand]:
    """Return the commands of a program by their names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return {
                name: Subcommand(command, summaries[name])
                for name, command in action.choices.items()
            }
    return {}


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[Option]]]:
    """Yield the title of each group of arguments that has any, and its arguments."""
    for group in parser._action_groups:
        options = [
            _option_of(parser, action)
            for action in group._group_actions
            if not isinstance(action, argparse._SubParsersAction)
            and action.help is not argparse.SUPPRESS
        ]
        if options:
            yield group.title or "options", options


def _option_of(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    formatter = parser._get_formatter()
    value = ""
    if action.nargs != 0:
        choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else ""
        name = action.dest.upper() if action.option_strings else action.dest
        value = str(action.metavar or choices or name)
    return Option(
        tuple(action.option_strings),
        value,
        formatter._expand_help(action) if action.help else "",
        tuple(map(str, action.choices or ())),
        action.nargs == argparse.OPTIONAL and bool(action.option_strings),
        isinstance(action, argparse._AppendAction) or action.nargs in ("*", "+"),
    )


def _all_options(parser: argparse.ArgumentParser) -> list[Option]:
    return [option for _, options in options_of(parser) for option in options]


def _names(options: Iterable[Option]) -> str:
    return " ".join(name for option in options for name in option.names)


# bash


def bash(parser: argparse.ArgumentParser) -> str:
    """Return the completion for bash, which the package bash-completion loads when needed."""
    program = parser.prog
    commands = commands_of(parser)
    cases = "".join(_bash_case(name, command.parser) for name, command in commands.items())
    return f"""\
# bash completion for {program}, written by apachews_tools.dev.manuals.

_{program}() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}}
    local options="" files="" index
    # An option of the program itself may stand before the command.
    for ((index = 1; index < COMP_CWORD; index++)); do
        [[ ${{COMP_WORDS[index]}} == -* ]] || break
    done
    COMPREPLY=()
    if ((index == COMP_CWORD)); then
        COMPREPLY=($(compgen -W "{" ".join(commands)} {_names(_all_options(parser))}" -- "$word"))
        return
    fi
    case ${{COMP_WORDS[index]}} in
{cases}    *)
        return
        ;;
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$word"))
    elif [[ $files ]]; then
        compopt -o filenames
        local IFS=$'\\n'
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -F _{program} {program}
"""


def _bash_case(name: str, parser: argparse.ArgumentParser) -> str:
    options = _all_options(parser)
    cases = []
    for option in options:
        if not option.takes_value:
            continue
        if option.choices:
            values = f'COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$word"))'
        elif option.is_directory or option.is_file:
            kind = "-d" if option.is_directory else "-f"
            values = (
                "compopt -o filenames; local IFS=$'\\n';"
                f' COMPREPLY=($(compgen {kind} -- "$word"))'
            )
        else:
            values = ":"
        cases.append(f"        {'|'.join(option.names)}) {values}; return ;;\n")
    takes_files = any(option.is_file for option in options if not option.names)
    before = f"        case $before in\n{''.join(cases)}        esac\n" if cases else ""
    files = "        files=1\n" if takes_files else ""
    return f'    {name})\n{before}        options="{_names(options)}"\n{files}        ;;\n'


# zsh


def zsh(parser: argparse.ArgumentParser) -> str:
    """Return the completion for zsh, for a directory of ``$fpath``."""
    program = parser.prog
    commands = commands_of(parser)
    described = "".join(
        f"        {_zsh_word(f'{name}:{command.summary}')}\n" for name, command in commands.items()
    )
    cases = "".join(
        f"    {name})\n        _arguments -s \\\n{_zsh_arguments(command.parser)}\n        ;;\n"
        for name, command in commands.items()
    )
    return f"""\
#compdef {program}
# Written by apachews_tools.dev.manuals.

_{program}() {{
    local curcontext=$curcontext state line
    local -a commands
    commands=(
{described}    )
    _arguments -C \\
{_zsh_arguments(parser)} \\
        '1: :->command' \\
        '*:: :->argument'
    case $state in
    command)
        _describe command commands
        ;;
    argument)
        curcontext=${{curcontext%:*:*}}:{program}-$words[1]:
        _{program}_argument
        ;;
    esac
}}

_{program}_argument() {{
    case $words[1] in
{cases}    esac
}}

_{program} "$@"
"""


def _zsh_arguments(parser: argparse.ArgumentParser) -> str:
    lines = []
    position = 0
    for option in _all_options(parser):
        help_text = _zsh_text(option.help)
        value = ""
        if option.value:
            colon = "::" if option.is_value_optional else ":"
            value = f"{colon}{_zsh_text(option.value)}:{_zsh_values(option)}"
        if not option.names:
            position += 1
            place = "*" if option.is_repeatable else position
            lines.append(_zsh_word(f"{place}:{help_text}:{_zsh_values(option)}"))
        for name in option.names:
            others = "*" if option.is_repeatable else f"({' '.join(option.names)})"
            lines.append(_zsh_word(f"{others}{name}[{help_text}]{value}"))
    return " \\\n".join(f"        {line}" for line in lines)


def _zsh_values(option: Option) -> str:
    if option.choices:
        return f"({' '.join(option.choices)})"
    if option.is_directory:
        return "_files -/"
    # "()": no word is known.  A blank would mean the same, but keeps zsh from offering options.
    return "_files" if option.is_file else "()"


def _zsh_text(text: str) -> str:
    r"""Return a text for ``_arguments``, in which ``[``, ``]`` and ``:`` have a meaning."""
    for character in "\\[]:":
        text = text.replace(character, f"\\{character}")
    return text


def _zsh_word(text: str) -> str:
    return shlex.quote(text)


# fish


def fish(parser: argparse.ArgumentParser) -> str:
    """Return the completion for fish."""
    program = parser.prog
    commands = commands_of(parser)
    start = f"complete -c {program}"
    lines = [f"# fish completion for {program}, written by apachews_tools.dev.manuals.", ""]
    lines.append(f"{start} -f")
    for option in _all_options(parser):
        lines.append(f"{start} -n __fish_use_subcommand {_fish_option(option)}")
    for name, command in commands.items():
        lines.append(f"{start} -n __fish_use_subcommand -a {name} -d {_fish_word(command.summary)}")
    for name, command in commands.items():
        lines.append("")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        for option in _all_options(command.parser):
            if option.names:
                lines.append(f"{start} {seen} {_fish_option(option)}")
            elif option.is_file:
                lines.append(f"{start} {seen} -F")
    return "\n".join(lines) + "\n"


def _fish_option(option: Option) -> str:
    words = []
    for name in option.names:
        words += ["-l", name[2:]] if name.startswith("--") else ["-s", name[1:]]
    if option.choices:
        words += ["-x", "-a", _fish_word(" ".join(option.choices))]
    elif option.is_directory:
        words += ["-x", "-a", _fish_word("(__fish_complete_directories)")]
    elif option.is_file and option.takes_value:
        words += ["-r", "-F"]
    elif option.takes_value:
        words.append("-x")
    return " ".join([*words, "-d", _fish_word(option.help)])


def _fish_word(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
