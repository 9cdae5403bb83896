"""What all sections share: strict fields, and the types of values that several have."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator


def is_function_reference(value: str) -> str:
    """`value`, if it is "module:function"; else ValueError."""
    module, _, function = value.partition(":")
    if not all(part.isidentifier() for part in module.split(".")) or not function.isidentifier():
        raise ValueError('should be "module:function", e.g. "my_package.rewards:score"')
    return value


FunctionReference = Annotated[str, AfterValidator(is_function_reference)]
LARGEST_COEFFICIENT = 1e6
"""So that a loss of many such terms is finite in float32."""
LARGEST_WAIT = 1e6
"""Seconds, eleven days; Python's clocks end somewhere above."""
Coefficient = Annotated[float, Field(ge=0, le=LARGEST_COEFFICIENT)]
LearningRate = Annotated[float, Field(gt=0, le=10)]
ResponseLength = Annotated[int, Field(ge=1, le=2**24)]
"""Tokens; far above what any model can read."""
Options = dict[str, float | bool | None]
Dtype = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _types_in(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and not kinds & {bool, Any} and kinds & {int, float}:
            raise ValueError("should be a number, not true or false")
        return value


def _types_in(annotation: Any) -> set[Any]:
    """A type and the members of a union or container."""
    return {annotation}.union(
        *(_types_in(part) for part in get_args(annotation) if get_origin(annotation) is not Literal)
    )
