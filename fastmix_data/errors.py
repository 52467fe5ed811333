"""Errors a user can cause. The command line prints them as one line, `where: what; remedy`, and exits with code 2."""

from __future__ import annotations


class FastmixError(Exception):
    """Base of every error a user can put right.

    Attributes:
        where: the key, file or option at fault; empty where there is none to name.
        what: what is wrong there, with the values.
        remedy: how to put it right.

    >>> print(FastmixError("recipe.yaml", "there is no such recipe", "`fastmix init DIR` writes one"))
    recipe.yaml: there is no such recipe; `fastmix init DIR` writes one
    """

    def __init__(self, where: object, what: str = "", remedy: str = "") -> None:
        """Keep the three parts apart: whoever collects errors, as `fastmix verify` does, needs them so."""
        super().__init__(where, what, remedy)  # pickled by these arguments: errors travel from ranks and Dask workers
        self.where, self.what, self.remedy = str(where), what, remedy

    def __str__(self) -> str:
        """One line."""
        line = f"{self.where}: {self.what}" if self.where and self.what else self.where or self.what
        return f"{line}; {self.remedy}" if self.remedy else line


class RecipeError(FastmixError):
    """The recipe is not usable: an unknown key, a wrong value, a missing part."""


class InputError(FastmixError):
    """A source file is missing, malformed or empty."""


class MismatchError(FastmixError):
    """An artefact on disk was made from other inputs than the ones given now."""


class CorruptArtefactError(FastmixError):
    """A file does not have the content its artefact recorded."""


class InfeasibleBudgetError(FastmixError):
    """The epoch caps make a token budget unreachable."""


class Interrupted(FastmixError):
    """The user stopped a run; the remedy says how to go on."""


class PeerError(FastmixError):
    """Another rank of the run failed, and says why."""


class ToldElsewhere(FastmixError):
    """This rank failed as another did, which has said all there is to say."""
