"""Errors a user can cause. The command line prints their message as one line and exits with code 2."""

from __future__ import annotations


class FastmixError(Exception):
    """Base of every error a user can put right; the message says what, where and how."""


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
    """The user stopped a run; the message says how to go on."""
