"""An export on the hub, with the user's own token."""

import re
from pathlib import Path

from prune_jax.errors import UserError, first_line


def check(name: str) -> None:
    """Checks a repository's name before anything is written. UserError if it is none."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"--push-to-hub is {name!r}; allowed: USER/NAME")


def check_token() -> None:
    """Checks that there is a token to upload with. UserError if there is none."""
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise UserError("--push-to-hub needs your own token: `hf auth login`, or the variable HF_TOKEN")


def files_of(folder: Path) -> list[tuple[str, int]]:
    """(name, bytes) of what would be uploaded, sorted."""
    return sorted((str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file())


def push(folder: Path, name: str) -> str:
    """Uploads a folder to the repository `name`, which is made where it is not there, and returns its address.

    Raises:
      UserError: the hub does not take it; the folder stays.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        url = str(api.create_repo(name, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of prune_jax")
    except Exception as error:  # offline, no such user, no right to write: the library has a kind for each
        raise UserError(
            f"{folder} is written; the hub does not take it as {name}: {first_line(error)[:300]}"
        ) from error
    return url
