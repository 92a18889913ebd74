"""Push heads to a model hub, with a model card."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from torch import nn

from .checks import shown
from .io import save_heads
from .model_card import HUB_ID, card_of, merged
from .saved import HEADS, open_heads

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

__all__ = ["push_heads"]

_CARD = "README.md"


def push_heads(
    model: nn.Module,
    repo_id: str,
    *,
    figures: Mapping[str, float | str] | None = None,
    base_model: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str = "Upload heads of tokenprune",
    create_pr: bool = False,
) -> CommitInfo:
    """Push the heads of a wrapped model to a hub, with a model card, in one commit.

    `wrap` and `load_heads` take the repository's id. The repository is created if there is none;
    heads that it has are replaced. ``model.push_to_hub`` uploads the whole model instead, with the
    pruning beside it.

    The card says which model the heads are for, the budgets they were calibrated for, their
    configuration and how to load them. If the repository has a card, only the part of it that an
    earlier push wrote is renewed; one without such a part is left as it is, with a warning.

    Parameters
    ----------
    model : nn.Module
        A wrapped model.
    repo_id : str
        ``"name"`` or ``"owner/name"``.
    figures : mapping, optional
        Name → number or text, a table in the card: what you measured, for instance
        ``run.summary()`` of a `track` run. Without it the card has no such table.
    base_model : str, optional
        Hub id of the model that the heads are for. None: the id that the model was loaded by, if it
        was not a folder.
    private : bool, optional
        Whether a repository that is created is private. None: the hub's default.
    token : str, optional
        None: the one that ``hf auth login`` stored, or ``HF_TOKEN``.
    revision : str, optional
        The branch to commit to. None: the main one.
    commit_message : str
    create_pr : bool
        Whether to open a pull request instead of committing.

    Returns
    -------
    huggingface_hub.CommitInfo
        With ``commit_url``, ``oid`` and ``pr_url``.

    Raises
    ------
    ValueError
        If the model is not wrapped, its heads would not load again, or an argument is of another
        form. Nothing is then sent.
    PermissionError
        If there is no token, or it may not write to the repository.
    ConnectionError
        If the hub cannot be reached.
    OSError
        If the hub refuses for another reason.

    Examples
    --------
    ::

        model = tp.wrap(model, tp.ATPConfig(target_tokens=144))
        tp.calibrate(model, batches, [88, 144])
        tp.push_heads(model, "you/llava-1.5-heads", figures={"POPE accuracy at 144": 85.9})

    >>> tp.push_heads(tp.wrap(model), "not an id")
    Traceback (most recent call last):
    ValueError: repo_id='not an id': expected "name" or "owner/name" of letters, digits, -, _ and .
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f'repo_id={shown(repo_id)}: expected "name" or "owner/name" of letters, digits, -, _ '
            "and ."
        ) from error
    rows = _checked(figures)
    if base_model is not None and not HUB_ID.fullmatch(base_model):
        raise ValueError(f'base_model={shown(base_model)}: expected a hub id, "owner/name".')
    with TemporaryDirectory() as folder:
        save_heads(model, folder)
        with open_heads(folder) as opened:
            about = opened.about
        api = HfApi(token=token, library_name="tokenprune")
        with _explained(repo_id):
            # The id with its owner: the one that is logged in, where none was given.
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            card = card_of(about, repo_id, rows, base_model)
            text = merged(_existing(api, repo_id, revision), card)
            if text is None:
                warnings.warn(
                    f"The {_CARD} of {repo_id} was not written by tokenprune.push_heads and is "
                    "left as it is: it does not say what the new heads are.",
                    stacklevel=2,
                )
            added = [CommitOperationAdd(HEADS, str(Path(folder, HEADS)))]
            added += [] if text is None else [CommitOperationAdd(_CARD, text.encode())]
            return api.create_commit(
                repo_id,
                added,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )


def _checked(figures: Any) -> dict[str, str]:
    if figures is None:
        return {}
    if not isinstance(figures, Mapping):
        raise ValueError(f"figures={shown(figures)}: expected a dict of names and numbers.")
    for name, value in figures.items():
        if (
            not isinstance(name, str)
            or isinstance(value, bool)
            or not isinstance(value, str | Real)
        ):
            raise ValueError(
                f"figures has {shown(name)}: {shown(value)}: expected a name, and a number or text."
            )
    return {k: v if isinstance(v, str) else f"{float(v):.6g}" for k, v in figures.items()}


def _existing(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """Return the card that the repository has."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = api.hf_hub_download(repo_id, _CARD, revision=revision)
    except LocalEntryNotFoundError:  # it could not be asked for: there may be one
        raise
    except (EntryNotFoundError, RevisionNotFoundError):
        return None
    return Path(path).read_text(encoding="utf-8")


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Say what to do about an error of the hub's client."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
    )

    begin = f"The heads were not pushed to {repo_id}: "
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise _unreachable(begin, error) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            raise PermissionError(
                f"{begin}the hub takes no token, or not this one. Log in with `hf auth login`, set "
                "HF_TOKEN, or give token=, one that may write."
            ) from error
        if status == 403:
            raise PermissionError(
                f"{begin}this token may not write there. Give a token that may, a repository of "
                "your own, or create_pr=True."
            ) from error
        raise OSError(f"{begin}the hub answered {status} ({error}).") from error
    except LocalTokenNotFoundError as error:
        raise PermissionError(
            f"{begin}there is no token. Log in with `hf auth login`, set HF_TOKEN, or give token=."
        ) from error
    except (HTTPError, OSError) as error:
        # Of the library that the client is built on (its HTTPError, or an OSError), or offline.
        raise _unreachable(begin, error) from error


def _unreachable(begin: str, error: Exception) -> ConnectionError:
    from huggingface_hub import constants

    return ConnectionError(
        f"{begin}{constants.ENDPOINT} cannot be reached ({type(error).__name__}: {error}). Check "
        "the network, HF_ENDPOINT and HF_HUB_OFFLINE, or save_heads to a folder, to upload later."
    )
