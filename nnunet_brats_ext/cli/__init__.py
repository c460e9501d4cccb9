"""`nnunet_brats <verb>`: arguments in, one function call out.

Verbs and their groups are in `verbs`, options in the dataclass of each command (`storage.options`), and what a command
prints in the modules named after its group. A verb imports its function when it runs: help never waits for torch.
"""

import sys
import traceback
import warnings
from collections.abc import Sequence

from nnunet_brats_ext import __version__
from nnunet_brats_ext.cli.verbs import GROUPS, find_verb
from nnunet_brats_ext.storage.errors import Notice, UserError, did_you_mean

DEBUG = "--debug"
PYTHONS_FORMAT = warnings.formatwarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit code. What the user can fix is one sentence, anything else keeps its traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = DEBUG in words
    words = [word for word in words if word != DEBUG]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"nnunet-brats-ext {__version__}")
        return 0
    try:
        return _run(words, debug)
    except KeyboardInterrupt:
        print(f"nnunet_brats {words[0]}: stopped", file=sys.stderr)
        return 130


def _run(words: Sequence[str], debug: bool) -> int:
    """Run a verb with its options; the exit code."""
    if (verb := find_verb(words[0])) is None:
        known = [one.name for verbs in GROUPS.values() for one in verbs if not one.hidden]
        print(f"nnunet_brats: no verb {words[0]!r}{did_you_mean(words[0], known)}\n\n{overview()}", file=sys.stderr)
        return 2
    from nnunet_brats_ext.cli.imports import quick_imports
    from nnunet_brats_ext.cli.parser import parse
    from nnunet_brats_ext.plugin.requirements import require_nnunet
    from nnunet_brats_ext.storage.parallel import progress_shown

    # Of libraries about themselves: users can do nothing about them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(vision)?(\.|$)")
    warnings.simplefilter("always", Notice)
    warnings.formatwarning = _format_warning
    try:
        if verb.name != "doctor":  # which reports it with everything else
            require_nnunet()
    except ImportError as error:
        return _fail(verb.name, str(error), debug)
    try:
        options = parse(verb.load_options(), f"nnunet_brats {verb.name}", verb.load_description(), words[1:])
        with quick_imports():
            perform = verb.load_run()
        with progress_shown():
            return perform(options) or 0
    except UserError as error:
        return _fail(verb.name, str(error), debug)
    except OSError as error:
        if error.filename is None and error.errno is None:  # raised by code, not by the operating system
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        return _fail(verb.name, f"{place}{error.strerror or error}", debug)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A notice without its place in the code, which says nothing to users; other warnings as Python shows them."""
    if issubclass(category, Notice):
        return f"warning: {message}\n"
    return PYTHONS_FORMAT(message, category, filename, lineno, line)


def _fail(verb: str, message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"nnunet_brats {verb}: {message}", file=sys.stderr)
    return 1


def overview() -> str:
    """All verbs in their groups, a line each."""
    width = max((len(verb.name) for verbs in GROUPS.values() for verb in verbs if not verb.hidden), default=0)
    lines = ["usage: nnunet_brats [--version] VERB ... [--debug]", "", "What nnU-Net lacks for BraTS."]
    for group, verbs in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {verb.name:<{width}}  {verb.help}" for verb in verbs if not verb.hidden)]
    return "\n".join(
        [*lines, "", "`nnunet_brats VERB --help` lists its options; --debug shows the traceback of errors."]
    )
