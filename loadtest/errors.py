"""What can go wrong before there is anything to measure.

Every error is one line that says what happened and one that says what to do. What goes wrong with a single request is
not an exception but an outcome (`outcome.py`): it is data.

LoadTestError
  UsageError        the command line asks for something impossible          exit 2
  TargetError       the server cannot be used as asked (absent, 401, model)  exit 3
  DataError         a data set, tokenizer or result file cannot be used      exit 4
  AssertionUnmet    the run worked and missed what --assert demands          exit 1
"""

from __future__ import annotations


class LoadTestError(Exception):
    """Base of all errors shown to the user as one line and a remedy, never as a traceback."""

    exit_code = 1

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}" if self.remedy else self.what


class UsageError(LoadTestError):
    """The command line contradicts itself or names something unknown."""

    exit_code = 2


class TargetError(LoadTestError):
    """The server cannot be reached or refuses to be used as asked."""

    exit_code = 3


class DataError(LoadTestError):
    """A file that the run needs is absent or not what it should be."""

    exit_code = 4


class AssertionUnmet(LoadTestError):
    """The run is complete and its figures miss a bound of `--assert`."""

    exit_code = 1
