"""What a repository on a hub gets of a learner, and the upload: private, and without texts."""

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
    """Write what a repository gets to a new folder: the adapter and a model card.

    Parameters
    ----------
    saved : Saved
    backbone : Backbone
    folder : path
        A new or empty folder.
    include : sequence of {"prompt", "choices", "labelled"}
        Texts that may go along. "prompt": template and system message. "choices": names of the
        classes. "labelled": items and labels, and with them all that `STARLearner.load` needs,
        prompt and choices too.
    base_model : str, optional
        Hub id of the base model, where the learner has it from a folder. The folder's path is
        written nowhere.
    license : str, optional
        The hub's name of a licence, such as "apache-2.0".

    Raises
    ------
    InputError
        When `include` holds another word, or there is something in the folder.
    """
    if isinstance(include, str):
        include = [include]
    unknown = [word for word in include if word not in INCLUDABLE]
    if unknown:
        raise InputError(
            f"include may hold {', '.join(map(repr, INCLUDABLE))}; got {unknown[0]!r:.60}."
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
        When `private` is asked for and the repository is there already and public. Nothing is then
        uploaded.
    ServerError
        When the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # OSError, and the error of the HTTP library that this version of the hub's library uses
    refusals: Any = (OSError, *HfHubHTTPError.__bases__)
    with tempfile.TemporaryDirectory(prefix="starlearn-") as scratch:
        folder = Path(scratch) / "repository"
        write_hub_folder(saved, backbone, folder, **contents)
        api = HfApi(token=token, library_name="starlearn")
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.model_info(repo_id).private:
                raise InputError(
                    f"{repo_id} is on {api.endpoint} already and is public. Make it private there, "
                    "choose another name, or say private=False. Nothing was uploaded."
                )
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                # of an earlier upload with include=["labelled"]: of other weights, and now unasked
                delete_patterns=[saving.SETTINGS, saving.LABELS, saving.MANIFEST],
                commit_message=commit_message or f"{len(saved.items)} labels",
            )
        except HFValidationError as error:
            raise InputError(f"{repo_id!r:.100} is no name of a repository: {error}") from error
        except refusals as error:
            raise ServerError(
                f"{api.endpoint} did not take {repo_id}: {' '.join(str(error).split())[:400]} "
                "Log in with a token that may write (hf auth login), unset HF_HUB_OFFLINE, and "
                "call again."
            ) from error
    return str(commit.commit_url)
