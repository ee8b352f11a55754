"""Upload of a learner to a hub: private by default, and without texts of items and labels."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlearn.errors import InputError, ServerError
from starlearn.export import saving
from starlearn.export.card import base_of, model_card
from starlearn.export.saving import Saved
from starlearn.model.adapter import write_adapter
from starlearn.model.backbone import Backbone
from starlearn.storage.files import complete_folder

INCLUDABLE = ("prompt", "choices", "labelled")


def write_hub_folder(
    saved: Saved,
    backbone: Backbone,
    folder: Path,
    *,
    include: Sequence[str] = (),
    base_model: str | None = None,
    license: str | None = None,
) -> None:
    """Write a repository's files to a new folder: the adapter and a model card.

    Parameters
    ----------
    saved : Saved
    backbone : Backbone
    folder : path
        A new or empty folder.
    include : sequence of {"prompt", "choices", "labelled"}
        Texts to include. "prompt": template and system message. "choices": names of the classes.
        "labelled": all that `STARLearner.load` needs, which is items, labels, prompt and choices.
    base_model : str, optional
        Hub id of the base model when the learner loaded it from a folder, whose path is never
        written.
    license : str, optional
        The hub's name of a licence, such as "apache-2.0".

    Raises
    ------
    InputError
        When `include` has another value, or the folder is not empty.
    """
    if isinstance(include, str):
        include = [include]
    unknown = [name for name in include if name not in INCLUDABLE]
    if unknown:
        raise InputError(
            f"include may contain {', '.join(map(repr, INCLUDABLE))}; got {unknown[0]!r:.60}."
        )
    base = base_of(backbone, base_model)
    everything = "labelled" in include
    with complete_folder(folder) as scratch:
        if everything:
            saving.write_files(saved, scratch, base["base"], base["revision"])
        else:
            write_adapter(scratch, saved.adapter, base["base"], base["revision"])
        card = model_card(
            saved,
            **base,
            license=license,
            prompt=everything or "prompt" in include,
            choices=everything or "choices" in include,
        )
        (scratch / "README.md").write_text(card, encoding="utf-8")


def push(
    saved: Saved,
    backbone: Backbone,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    commit_message: str | None = None,
    **contents: Any,
) -> str:
    """Upload what :func:`write_hub_folder` writes; return the address of the commit.

    Parameters
    ----------
    saved : Saved
    backbone : Backbone
    repo_id : str
        "user/name"; created if it does not exist.
    private : bool, default=True
        With True a repository that is public already is refused.
    token : str, optional
        By default the one of ``hf auth login``.
    commit_message : str, optional
    **contents
        As in :func:`write_hub_folder`.

    Raises
    ------
    InputError
        When `private` is set and the repository is public. Nothing is then uploaded.
    ServerError
        When the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The bases include the error class of the HTTP library, which differs by hub version.
    refusals: Any = (OSError, *HfHubHTTPError.__bases__)
    with tempfile.TemporaryDirectory(prefix="starlearn-") as scratch:
        folder = Path(scratch) / "repository"
        write_hub_folder(saved, backbone, folder, **contents)
        api = HfApi(token=token, library_name="starlearn")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.model_info(repo_id).private:
                raise InputError(
                    f"{repo_id} exists on {api.endpoint} and is public. Make it private there, "
                    "choose another name, or set private=False. Nothing was uploaded."
                )
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                # Files of an earlier upload with include=["labelled"], which belong to old weights.
                delete_patterns=[saving.SETTINGS, saving.LABELS, saving.MANIFEST],
                commit_message=commit_message or f"{len(saved.items)} labels",
            )
        except HFValidationError as error:
            raise InputError(f"{repo_id!r:.100} is not a valid repository name: {error}") from error
        except refusals as error:
            raise ServerError(
                f"The upload of {repo_id} to {api.endpoint} failed: "
                f"{' '.join(str(error).split())[:400]} Log in with a token that may write "
                "(hf auth login), unset HF_HUB_OFFLINE, and call again."
            ) from error
    return str(commit.commit_url)
