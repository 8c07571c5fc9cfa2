"""Command-line options made from the fields of a frozen value, so that each is declared once.

A field's name, type, default, bounds and description become the option's. Fields without a description are left out.
"""

import functools
import inspect
import types
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import annotated_types
import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

R = TypeVar("R")


def takes(**values: type[BaseModel]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorate a Typer command whose parameters of these names take values of these classes.

    Each of these parameters is replaced by one option per field, in its place; the command gets the value made from
    the options that were given, which are its ``model_fields_set``. Where two classes, or a class and the command
    itself, have a name in common, the command's own parameter comes first, then the earlier class: the later class
    keeps its default.
    """

    def decorate(command: Callable[..., R]) -> Callable[..., R]:
        parameters = inspect.signature(command).parameters
        taken = set(parameters)
        options: dict[str, dict[str, inspect.Parameter]] = {}
        for parameter, model in values.items():
            fields = {n: f for n, f in model.model_fields.items() if f.description and n not in taken}
            taken |= fields.keys()
            options[parameter] = {name: _parameter(name, field) for name, field in fields.items()}

        @functools.wraps(command)
        def called(*, context: typer.Context, **given: Any) -> R:
            made = {}
            for parameter, fields in options.items():
                found = {name: _plain(given.pop(name)) for name in fields}
                made[parameter] = _make(values[parameter], {n: found[n] for n in found if _is_given(context, n)})
            return command(**given, **made)

        flat = [
            part.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, own in parameters.items()
            for part in (options[name].values() if name in options else (own,))
        ]
        # Typer passes it to a parameter of this type.
        flat.append(inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))
        called.__signature__ = inspect.signature(command).replace(parameters=flat)  # type: ignore[attr-defined]
        called.__annotations__ = {part.name: part.annotation for part in flat}
        return called

    return decorate


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    default, item = field.default, field
    repeated = get_origin(field.annotation) is tuple
    if repeated:  # tuple[X, ...]: an option that may be given more than once
        default, item = list(default), FieldInfo.from_annotation(get_args(field.annotation)[0])
    bounds: dict[str, Any] = {}
    for constraint in item.metadata:
        if isinstance(constraint, annotated_types.Ge):
            bounds["min"] = constraint.ge
        elif isinstance(constraint, annotated_types.Le):
            bounds["max"] = constraint.le
    annotation: Any = item.annotation
    if repeated and get_origin(annotation) is Literal:  # Typer takes a list of an Enum, but not of a Literal
        make_enum: Any = Enum
        annotation = make_enum(name, {value: value for value in get_args(annotation)})
    if repeated:
        annotation = types.GenericAlias(list, (annotation,))
    # A switch that is off by default needs no second name to turn it off.
    names = (f"--{name.replace('_', '-')}",) if default is False else ()
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, typer.Option(*names, help=field.description, **bounds)],
    )


def _make(model: type[BaseModel], fields: dict[str, Any]) -> BaseModel:
    """Make the value; what Typer's own bounds let through, such as ``nan``, is a usage error as well."""
    try:
        return model(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # a rule of the class about several fields, which names them
            raise typer.BadParameter(str(first["ctx"]["error"])) from error
        raise typer.BadParameter(first["msg"], param_hint=f"--{str(first['loc'][0]).replace('_', '-')}") from error


def _is_given(context: typer.Context, name: str) -> bool:
    """Check whether an option is on the command line, or in the environment, and not at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _plain(value: Any) -> Any:
    """Convert an option's value to the field's: enum members to their values, lists to tuples without repetitions."""
    if isinstance(value, list):
        return tuple(dict.fromkeys(_plain(item) for item in value))
    return value.value if isinstance(value, Enum) else value
