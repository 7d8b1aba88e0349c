"""The gguf library, which only the extra `gguf` installs."""

from openmimo.errors import UserError

try:
    import gguf
except ModuleNotFoundError:
    raise UserError(
        "GGUF files need the gguf library: pip install 'openmimo[gguf]', or pip install gguf"
    ) from None

__all__ = ["gguf"]
