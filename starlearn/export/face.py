"""ExportMixin: the methods by which a learner leaves its process, and comes back."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from starlearn.data.containers import as_labels
from starlearn.errors import InputError, listed
from starlearn.export import hub, merged, saving
from starlearn.model.adapter import check_base
from starlearn.model.backbone import Backbone
from starlearn.model.processes import processes

Result = TypeVar("Result")


class ExportMixin:
    """Save, load, merge, and push to a hub; for STARLearner alone."""

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write adapter, settings and labelled set to a folder; see :mod:`starlearn.export.saving`.

        ``peft.PeftModel.from_pretrained(base, folder)`` opens it as it is. Of several processes of
        a program the first one writes, and the others wait for it.
        """
        self._once(lambda saved, backbone: saving.save(saved, folder, backbone))

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], model: str | os.PathLike[str] | None = None
    ) -> Self:
        """Read what `save` wrote; `model` says where the base model is now, if it moved.

        Raises
        ------
        InputError
            When the folder is not there, or was written by a newer starlearn.
        UntrustedFileError
            When a file is not the one that was saved, or its weights are not finite.
        ModelMismatchError
            When the base model is not the one that the adapter was trained on.
        """
        saved = saving.load(folder)
        known: Any = cls()
        if unknown := sorted(set(saved.parameters) - set(known.get_params(deep=False))):
            raise InputError(
                f"{folder} has parameters that this starlearn does not know: {listed(unknown)}. "
                "It was written by a newer one: update starlearn."
            )
        learner: Any = cls(**saved.parameters)
        if model is not None:
            learner.model = model
        learner._parts()
        check_base(learner._engine().backbone, saved.adapter)
        learner.adapter_, learner.seed_, learner.rounds_ = saved.adapter, saved.seed, saved.rounds
        if saved.classes is not None:
            learner.classes_ = as_labels(saved.classes, len(saved.classes))
        learner._remember(list(saved.items), as_labels(saved.labels, len(saved.items)))
        return learner

    def merge(
        self,
        to: str | os.PathLike[str],
        *,
        dtype: str = "auto",
        dequantize: bool = False,
        max_shard_size: str = "5GB",
    ) -> merged.Merged:
        """Write the base model with the adapter merged into it; see :mod:`starlearn.export.merged`.

        The base model is loaded once more, into the CPU's memory and in full precision. The
        adapter was trained on the quantised one, so some answers differ from the learner's.

        Parameters
        ----------
        to : path
            A new or empty folder. ``AutoModelForCausalLM.from_pretrained(to)`` opens it.
        dtype : {"auto", "float32", "bfloat16", "float16"}
            Type of the weights; "auto" is the one in which the base model is stored.
        dequantize : bool, default=False
            Merge into what 4 bits have left of the base model's weights in place of the original
            ones: the answers are then the learner's own, but for the rounding of `dtype`.
        max_shard_size : str
            Largest weight file.

        Returns
        -------
        Merged
            Sizes and files; ``print`` it.

        Raises
        ------
        InputError
            When the folder is not empty, or the base model is itself stored quantised.
        StorageError
            When the disk has too little room. Nothing half is left, as after Ctrl-C.
        """
        options: dict[str, Any] = {
            "dtype": dtype,
            "dequantize": dequantize,
            "max_shard_size": max_shard_size,
        }
        return self._once(lambda saved, backbone: merged.merge(saved, backbone, to, **options))

    def write_hub_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        include: Sequence[str] = (),
        base_model: str | None = None,
        license: str | None = None,
    ) -> None:
        """Write what `push_to_hub` would upload to a new folder, and upload nothing.

        Parameters
        ----------
        folder : path
        include, base_model, license
            As in :meth:`push_to_hub`.
        """
        contents: dict[str, Any] = {
            "include": include,
            "base_model": base_model,
            "license": license,
        }
        self._once(
            lambda saved, backbone: hub.write_hub_folder(saved, backbone, Path(folder), **contents)
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = True,
        include: Sequence[str] = (),
        base_model: str | None = None,
        license: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the adapter and a model card to a hub; see :mod:`starlearn.export.hub`.

        The card holds counts, settings, the learning curve and versions. No text of an item, no
        label, no choice and no prompt leaves this machine unless `include` says so.

        Parameters
        ----------
        repo_id : str
            "user/name"; made when it is not there.
        private : bool, default=True
            A repository that is public already is then refused.
        include : sequence of {"prompt", "choices", "labelled"}, default=()
            Texts that may go along; "labelled" means all that `load` needs.
        base_model : str, optional
            Hub id of the base model, where the learner has it from a folder.
        license : str, optional
            The hub's name of a licence, such as "apache-2.0".
        token : str, optional
            By default the one of ``hf auth login``.
        commit_message : str, optional

        Returns
        -------
        str
            The address of the commit.

        Raises
        ------
        InputError
            When `include` or `repo_id` cannot be used, or the repository is public.
        ServerError
            When the hub cannot be reached, or refuses.
        """
        contents: dict[str, Any] = {
            "include": include,
            "base_model": base_model,
            "license": license,
        }
        options: dict[str, Any] = {
            "private": private,
            "token": token,
            "commit_message": commit_message,
        }
        return self._once(
            lambda saved, backbone: hub.push(saved, backbone, repo_id, **options, **contents)
        )

    def _once(self: Any, act: Callable[[saving.Saved, Backbone], Result]) -> Result:
        """Act on the trained learner; of several processes, which all call it, the first does."""
        self._require_fit()
        backbone: Backbone = self._engine().backbone
        check_base(backbone, self.adapter_)
        content = saving.content_of(self)
        return processes().on_main(lambda: act(content, backbone))
