"""What a Hub refuses, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

AGAIN = "whatever is there is whole, and the same call may be made again"


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Raise what the Hub refuses, or a connection that broke, as a `ValueError`.

    The original error is left out: in the words of an HTTP client there can be the token.
    """
    try:
        yield
    except HFValidationError:
        raise ValueError(f"`repo_id` is {repo_id!r}; expected NAME or NAMESPACE/NAME.") from None
    except Exception as error:
        link: BaseException | None = error
        while link is not None and not isinstance(link, HTTPError | ConnectionError | TimeoutError):
            link = link.__cause__
        if link is None:
            raise
        raise ValueError(_sentence(link, repo_id)) from None


def _sentence(error: BaseException, repo_id: str) -> str:
    endpoint = constants.ENDPOINT
    if not isinstance(error, HfHubHTTPError):
        kind = type(error).__name__
        return f"`repo_id` {repo_id!r} was not written, as the connection to {endpoint} broke ({kind}): {AGAIN}."
    status = error.response.status_code
    said = " ".join((error.server_message or "no reason given").split()).rstrip(".")
    if status == 401:
        return f"`token` is missing or not known to {endpoint} ({said}); expected one with write access."
    if status == 403:
        return f"`repo_id` is {repo_id!r}, which the `token` may not write ({said}); expected one that it may."
    if status == 404:
        return f"`repo_id` is {repo_id!r}, which the `token` does not see ({said}); expected one that it may write."
    return f"`repo_id` {repo_id!r} was not written, as {endpoint} answered {status} ({said}): {AGAIN}."
