"""What every command-line tool does alike: one sentence and exit code 2 for a fault that the user can mend, 130 for Ctrl-C."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

from ..errors import SoloTrackError

__all__ = ["FAULTS", "add_command", "add_config_options", "config_words", "print_fault", "run_tool"]

# What a user can mend; each comes with a sentence that says how.
FAULTS = (SoloTrackError, OSError)


def print_fault(error: BaseException) -> None:
    """Write ``error: ...`` to the standard error."""
    text = str(error)
    if "Original Traceback" in text:  # from a loader's worker, whose last line is the fault itself
        text = text.strip().splitlines()[-1].partition(": ")[2]
    print(f"error: {text}", file=sys.stderr)


def run_tool(
    run: Callable[[argparse.Namespace], None],
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None = None,
    interrupted: str = "Stopped.",
) -> int:
    """Be a tool's main function.

    Args:
        run: does the work.
        parser: of the command line.
        argv: its words; None takes the program's.
        interrupted: what to say after Ctrl-C.

    Returns:
        The exit code: 0; 2 after a fault; 130 after Ctrl-C. argparse itself ends the program where it does not understand the words.
    """
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|detectron2|fvcore)\b")  # meant for their developers
    try:
        run(args)
    except FAULTS as error:
        print_fault(error)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    return 0


def add_command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], None], text: str, description: str
) -> argparse.ArgumentParser:
    """Add a command of a tool; ``args.run`` will be its ``run``. ``text`` is its line in the list; the description keeps its breaks."""
    parser = commands.add_parser(name, help=text, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=run)
    return parser


def add_config_options(parser: argparse.ArgumentParser, config_help: str = "the config the weights were trained with") -> None:
    """Add --config-file, --weights and, at the end of the command line, KEY VALUE ...; ``config_words`` joins them."""
    parser.add_argument("--config-file", required=True, metavar="FILE", help=config_help)
    parser.add_argument("--weights", default="", metavar="FILE", help="checkpoint; wins over MODEL.WEIGHTS, wherever that is given")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides, after all options")


def config_words(args: argparse.Namespace) -> list[str]:
    """The overrides of the command line, KEY VALUE KEY VALUE ..., for ``load_config``."""
    return [*args.opts, *(["MODEL.WEIGHTS", args.weights] if args.weights else [])]
