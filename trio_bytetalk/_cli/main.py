"""The program: what all commands have in common, and where each is found."""

from __future__ import annotations

import importlib
from typing import Any

import click
from click.shell_completion import FishComplete, ZshComplete

from .. import __version__
from . import failures
from .codecs import overview
from .completion import Bash

# A command ``x`` is ``command`` in the module ``_cli/x.py``, which is imported when it is needed.
COMMANDS: tuple[str, ...] = ("serve", "connect", "bench", "sniff")


_SHELLS = {"bash": Bash, "zsh": ZshComplete, "fish": FishComplete}


class Program(click.Group):
    """A group whose commands stand in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module = importlib.import_module(f"{__package__}.{cmd_name}")
            command: click.Command = module.command
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # which looks at none but the commands of this module
            raise click.NoSuchCommand(
                error.command_name, possibilities=self.list_commands(ctx), ctx=ctx
            ) from None

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        with failures.briefly():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with failures.briefly():
            return super().invoke(ctx)


@click.group(
    cls=Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=failures.EXIT_CODES,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.option(
    "--debug",
    is_flag=True,
    envvar=failures.DEBUG_VARIABLE,
    help="Show the traceback of an error, which otherwise is one line.  "
    f"[env: {failures.DEBUG_VARIABLE}]",
)
@click.pass_context
def program(ctx: click.Context, debug: bool) -> None:
    """Servers and clients that exchange messages, from the command line.

    \b
    A server that sends back what it receives, on port 5555:
      bytetalk serve echo
    The codecs, which say how messages are framed:
      bytetalk codecs
    """
    ctx.obj = debug


@program.command()
def codecs() -> None:
    """List the codecs and their settings."""
    click.echo(overview())


@program.command(short_help="Print the script for completion in a shell.")
@click.argument("shell", metavar="SHELL", type=click.Choice(list(_SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that has a shell complete commands, options, codecs and paths.

    \b
    In ~/.bashrc:
      eval "$(bytetalk completion bash)"
    In ~/.zshrc:
      eval "$(bytetalk completion zsh)"
    In ~/.config/fish/completions/bytetalk.fish:
      bytetalk completion fish | source
    """
    click.echo(_SHELLS[shell](program, {}, "bytetalk", "_BYTETALK_COMPLETE").source())
