"""Pushing a model folder to a hub, through huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.folders.hub import SECONDS, silence

_OF_AN_EARLIER_FORM = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)
"""What a push removes from the repository unless it brings the file: where an adapter's config lies, transformers loads the
adapter on its base, whatever whole weights lie beside it."""
LATER = "The folder is whole: push it later with `hf upload {name} {folder}`."


def problems_of_push(name: str) -> list[Problem]:
    """Why nothing can be pushed, found before a model is loaded: a wrong name, no token, no network."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return [Problem("push", f"expected the name of a repository, such as `me/my-student`, but got `{name}`.")]
    if get_token() is None:
        text = (
            "expected a token of the hub, but there is none. Run `hf auth login`, or set HF_TOKEN; or leave this out."
        )
        return [Problem("push", text)]
    if constants.HF_HUB_OFFLINE:
        return [Problem("push", "expected a network, but HF_HUB_OFFLINE is set. Unset it, or leave this out.")]
    if reason := silence(constants.ENDPOINT, name, SECONDS):
        text = f"expected a hub, but {constants.ENDPOINT} does not answer ({reason}). Go on with a network, or leave this out."
        return [Problem("push", text)]
    return []


def pushed(folder: Path, name: str) -> str:
    """Push a folder into a repository, which is made where there is none; returns a sentence that says where it is.

    Raises:
        ConfigError: the hub refused, or did not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # Its bases are the errors of the library's HTTP client, whichever that is, and of the system: no network, no answer.
    # A card that the hub takes for wrong, as one of a licence that it does not know, is a ValueError.
    refusals: tuple[type[BaseException], ...] = (HfHubHTTPError, *HfHubHTTPError.__bases__, ValueError)
    api = HfApi()
    try:
        made = api.create_repo(name, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message="Upload by cfg-distill export",
            delete_patterns=list(_OF_AN_EARLIER_FORM),
        )
    except refusals as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        later = LATER.format(name=name, folder=folder)
        raise ConfigError(
            Problem("push", f"`{folder}` was written, but not pushed to `{name}`: {reason}. {later}")
        ) from error
    return f"Pushed {folder} to {made}."
