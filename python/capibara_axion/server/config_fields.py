# SPDX-License-Identifier: Apache-2.0
"""What the models of the configuration file are made of.

Every field has a docstring: it is the key's description in the published JSON Schema and in the
reference (`config_reference`).
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

WEEK_S = 7 * 24 * 3600

Count = Annotated[int, Field(gt=0, le=2**31 - 1)]
Bytes = Annotated[int, Field(gt=0, le=2**50)]
Seconds = Annotated[float, Field(gt=0, le=WEEK_S)]
Text = Annotated[str, Field(max_length=4096)]
# A path as the file has it. NUL would end it early in the system's calls.
FilePath = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")]


class Section(BaseModel):
    """An object of the file: no key but its fields, no value converted from another type."""

    model_config = ConfigDict(
        extra="forbid", strict=True, protected_namespaces=(), use_attribute_docstrings=True
    )


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a field of this type holds: itself, one or nothing, or a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)
