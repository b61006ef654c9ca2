"""Completion in bash, to which one word of ours may be several: it cuts them at ``=`` and ``:``."""

from __future__ import annotations

import os
from typing import Any, Final

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    split_arg_string,
)

# After a plus sign there is more to come, so there is no space behind it.
_SCRIPT: Final = """\
%(complete_func)s() {
    local IFS=$'\\n' completion type value
    COMPREPLY=()
    for completion in $(env COMP_LINE="${COMP_LINE:0:COMP_POINT}" \\
        COMP_WORD="${COMP_WORDS[COMP_CWORD]}" %(complete_var)s=bash_complete $1)
    do
        IFS=',' read -r type value <<< "$completion"
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *+ ]]; then
        compopt -o nospace
    fi
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@add_completion_class
class Bash(BashComplete):
    """click's own, but for whole words: bash is given what replaces its part of one."""

    source_template = _SCRIPT

    _front = ""  # what click does not count to the word: an option and its equals sign
    _cut = 0  # how much of the word is not replaced

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one at the cursor, and that as far as it goes."""
        # With a letter more, there always is a word at the end.
        _program, *args, word = split_arg_string(f"{os.environ['COMP_LINE']}.")
        word = word[:-1]
        # What bash replaces: not the quote that it may begin with, nor what it cuts at.
        part = os.environ["COMP_WORD"].lstrip("'\"")
        if not part.strip("=:"):
            part = ""
        self._cut = len(word) - len(part) if word.endswith(part) else 0
        if word.startswith("-") and "=" in word:
            self._front = word.partition("=")[0] + "="
        return args, word

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """The kind of completion, and what stands in its place."""
        return f"{item.type},{(self._front + str(item.value))[self._cut :]}"
