"""Does the environment have what pyproject.toml asks for? Read from the installed metadata, so it is stated once."""

from importlib import metadata

from packaging.requirements import Requirement

DISTRIBUTION = "nnunet-brats-ext"


def requirements() -> list[Requirement]:
    """What this package needs in every use, extras left out."""
    declared = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or []]
    return [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]


def complaint(requirement: Requirement) -> str | None:
    """A sentence with the command that fixes it, or None if the requirement is met."""
    fix = f"run: pip install '{requirement}'"
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement} is needed and {requirement.name} is not installed; {fix}"
    if not requirement.specifier.contains(installed, prereleases=True):
        return f"{requirement} is needed and {requirement.name} {installed} is installed; {fix}"
    return None


def require_nnunet() -> None:
    """Raise an ImportError of one sentence if nnU-Net is missing or of another generation."""
    for requirement in requirements():
        if requirement.name == "nnunetv2" and (sentence := complaint(requirement)):
            raise ImportError(f"nnunet_brats_ext: {sentence}")
