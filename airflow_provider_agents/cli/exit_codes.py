"""How a command ended."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended. Public: scripts decide by it. argparse, too, ends with `WRONG_ARGUMENTS`."""

    DONE = 0
    NOT_DONE = 1
    WRONG_ARGUMENTS = 2
    RUN_FAILED = 3
    RUN_STILL_RUNNING = 4
    RUN_AMBIGUOUS = 5
    RUN_IN_DOUBT = 6
    INTERRUPTED = 130


EXIT_CODES = """exit codes of `run`:
  0    the run COMPLETED; without --wait: it was accepted
  1    nothing was started
  2    the arguments are wrong
  3    the run FAILED
  4    the run was not over in time, or can no longer be read; it is still running
  5    several runs could be this one, and it is not known which one is
  6    it is not known whether a run was started
  130  interrupted (Ctrl-C); a run that was started is still running
"""

PROBE_EXIT_CODES = """exit codes of `probe`:
  0    all runs were seen to their end, and all that this provider assumes holds
  1    nothing was started; or something that this provider assumes does not hold (see the warnings)
  2    the arguments are wrong, or there is no terminal to confirm on: nothing was started
  4    not all runs were seen to their end: the report has what is known
  6    the report has what is known, and it is not known whether one more run was started
  130  interrupted (Ctrl-C): the report has what is known; a run that was started is still running
"""
