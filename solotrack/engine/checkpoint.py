"""Checkpoints that are whole or not there at all."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..errors import SoloTrackError
from ..files import atomic_write

__all__ = ["AtomicCheckpointer", "CheckpointError"]


class CheckpointError(SoloTrackError, RuntimeError):
    """A checkpoint that is missing, damaged or made for another model; the message names the file and the remedy."""


class _NumpyUnpickler(pickle.Unpickler):
    """Reads the arrays of a Detectron2 model-zoo file and refuses everything else a pickle could run."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which a weights file has no need of")
        return super().find_class(module, name)


@contextmanager
def _damage_named() -> Iterator[None]:
    """Bytes that are no pickle, or a damaged one, spell any instructions and so raise any error; make it one."""
    try:
        yield
    except pickle.UnpicklingError:
        raise
    except Exception as error:
        raise pickle.UnpicklingError(str(error) or type(error).__name__) from error


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic saves, safe loads and errors that say what to do.

    A file is written beside its final name, flushed to disk and renamed; ``last_checkpoint`` follows, in the same way. A process
    killed at any moment leaves the previous checkpoint in force. Files load with ``weights_only=True``; model-zoo pickles may hold
    arrays alone.
    """

    def save(self, name: str, *, tag: bool = True, **kwargs: Any) -> None:
        """Save model and checkpointables as ``save_dir/name.pth``.

        Args:
            name: of the file.
            tag: make it the checkpoint that a resumed run continues from.
            kwargs: more to put into the file.

        Raises:
            CheckpointError: the file could not be written (a full disk, no permission); the previous checkpoint is untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict(), **{key: obj.state_dict() for key, obj in self.checkpointables.items()}, **kwargs}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            with atomic_write(path, "wb") as file:
                torch.save(data, file)
            if tag:
                self.tag_last_checkpoint(f"{name}.pth")
        except (OSError, RuntimeError) as error:  # torch reports a short write as a RuntimeError
            raise CheckpointError(
                f"Could not write {path}: {error}. Free some disk space or change OUTPUT_DIR, then continue with --resume; "
                "earlier checkpoints are whole."
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to continue from; one that was removed by hand is none."""
        if not super().has_checkpoint():
            return False
        path = self.get_checkpoint_file()
        if os.path.isfile(path):
            return True
        self.logger.warning(f"{path} was the last checkpoint and is gone: this run does not continue from it.")
        return False

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load weights and, unless told otherwise, the training state; "" loads nothing.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise CheckpointError(
                f"There is no checkpoint {path}. Check MODEL.WEIGHTS; tools/convert_weights.py makes one from torchvision's or "
                "mmdetection's weights."
            )
        try:
            extra = super().load(path, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, OSError, RuntimeError, KeyError, ValueError, AttributeError, TypeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if "weights_only" in reason:  # PyTorch's advice is to load it unsafely
                reason = "it is damaged, or holds Python objects, which are not loaded"
            raise CheckpointError(
                f"{path} is not a readable checkpoint ({reason}). Copy it again, or take another file of that folder."
            ) from error
        finally:
            self._parsed_url_during_load = None
        lost = self._incompatible if path else None
        if lost and not lost.incorrect_shapes and {name for name, _ in self.model.named_parameters()} <= set(lost.missing_keys):
            raise CheckpointError(
                f"No weight of {path} fits a parameter of the model. Weights of torchvision or mmdetection go through "
                "tools/convert_weights.py first."
            )
        if lost and hasattr(self.model, "initialise_missing"):
            lost.missing_keys[:] = sorted(set(lost.missing_keys) - self.model.initialise_missing(lost.missing_keys))
        return extra

    def load_for_inference(self, path: str) -> None:
        """Load weights that must fit the whole model.

        Raises:
            CheckpointError: no path, no such file, or parameters are missing or of another shape.
        """
        if not path:
            raise CheckpointError("No weights: set MODEL.WEIGHTS to a checkpoint (for instance output/quickstart/model_final.pth).")
        self.load(path, checkpointables=[])
        reshaped = {
            key: f"{key} (shape {tuple(theirs)}, the config wants {tuple(ours)})"
            for key, theirs, ours in self._incompatible.incorrect_shapes
        }
        bad = [*reshaped.values()]
        bad += [key for key in self._incompatible.missing_keys if not key.endswith("null_logit") and key not in reshaped]
        if bad:
            raise CheckpointError(
                f"{path} does not fit the config: {len(bad)} parameters are missing or of another shape, e.g. {', '.join(bad[:3])}. "
                "Use the config the model was trained with (config.yaml beside the checkpoint)."
            )

    def _load_model(self, checkpoint: Any):
        self._incompatible = super()._load_model(checkpoint)
        return self._incompatible

    def _torch_load(self, f: str) -> dict[str, Any]:
        if zipfile.is_zipfile(f):  # all but files of the oldest PyTorch, which itself does not look at check sums
            with zipfile.ZipFile(f) as archive:
                damaged = archive.testzip()
            if damaged:
                raise ValueError(f"the check sum of {damaged} in it is wrong")
        with _damage_named():
            return torch.load(f, map_location="cpu", weights_only=True)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        with open(filename, "rb") as file, _damage_named():
            data = _NumpyUnpickler(io.BytesIO(file.read()), encoding="latin1").load()
        if "model" in data:
            return data
        return {"model": data, "__author__": "Caffe2", "matching_heuristics": True}
