"""How the fake cloud refuses."""

from __future__ import annotations

__all__ = ["ApiError"]


class ApiError(Exception):
    """A refusal, with the HTTP status and the code of the API reference."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message or f"The request was refused: {code}."
