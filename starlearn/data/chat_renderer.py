"""Program that renders one chat template: `chat.py` runs it with limits and can kill it.

It reads one request as JSON from standard input and writes the result as JSON. It imports only
Jinja, because it starts once per template and has to start fast. The environment is that of
transformers, except for `strftime_now`.
"""

import json
import sys
from datetime import datetime
from typing import Any


def main() -> None:
    """Render the template of the request, or report the error that it raises."""
    request = json.load(sys.stdin)
    sys.path[:] = request["path"]
    set_limits(request["seconds"], request["memory"])
    try:
        text = rendered(request)
        # The length shows the caller that a text was cut.
        found = {"text": text[: request["characters"]], "length": len(text)}
    # A template may raise any error; the caller reports it.
    except Exception as error:  # noqa: BLE001
        found = {"error": f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")}
    print(json.dumps(found))


def set_limits(seconds: int, memory: int) -> None:
    """Limit processor time and memory of this process, as far as the system can do it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"RLIMIT_CORE": 0, "RLIMIT_CPU": seconds, "RLIMIT_AS": memory}
    for name, most in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):  # macOS refuses a limit on memory
            continue


def rendered(request: dict[str, Any]) -> str:
    """Return the text of a template, as transformers renders it with a generation prompt."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag that marks the assistant's part, which is rendered as it is."""

        tags = {"generation"}  # noqa: RUF012 (the form that Jinja asks for)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Namespace(jinja2.utils.Namespace):
        """A namespace without names that lead to Python's internals."""

        def __init__(*args: Any, **values: Any) -> None:  # so that `self` can be a name
            for name in dict(*args[1:], **values):
                Namespace.check(name)
            jinja2.utils.Namespace.__init__(*args, **values)

        def __setitem__(self, name: str, value: Any) -> None:
            Namespace.check(name)
            super().__setitem__(name, value)

        @staticmethod
        def check(name: Any) -> None:
            if str(name).startswith("_"):
                raise jinja2.exceptions.SecurityError(f"the name {name!r} is not allowed")

    class Dict:
        """The constructor of dictionaries, without the attributes of a class."""

        def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
            return dict(*args, **values)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.fromisoformat(request["day"]).strftime(form)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment.from_string(request["template"]).render(
        messages=request["messages"],
        tools=None,
        documents=None,
        add_generation_prompt=True,
        **request["names"],
    )


if __name__ == "__main__":
    main()
