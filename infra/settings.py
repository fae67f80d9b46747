"""What every section of a recipe is: typed settings that refuse what they do not know."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict

Value = TypeVar("Value", int, str)


def each_once(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """The values. Raises ValueError where one comes twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"got {values}, expected each once")
    return values


class Settings(BaseModel):
    """Strict and unchangeable: "3" is not 3, and an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
