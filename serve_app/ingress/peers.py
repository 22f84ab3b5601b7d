"""Asks all ingress replicas of the application, this one included."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc
import msgspec
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.observability.records import RecordQuery, RecordStore, decode_records, encode_query
from serve_app.observability.search import Found

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 0.8
"""An ingress that does not answer in this time is left out: whoever asks wants to know within a second."""

CALL_FAILED = (RayError, RayServeException, grpc.RpcError, TimeoutError)


class AllIngresses:
    """`RecordSearch` over a handle to the ingress deployment, which exists once the application runs."""

    def __init__(self, ingresses: Callable[[], DeploymentHandle[Any]], own: RecordStore) -> None:
        self._ingresses = ingresses
        self._own = own
        self._handle: DeploymentHandle[Any] | None = None

    async def find(self, query: RecordQuery) -> Found:
        """See `RecordSearch`."""
        if self._handle is None:
            self._handle = self._ingresses()
        try:
            response = self._handle.broadcast("find_records", encode_query(query))
            answers = await response.results_async(timeout_s=ANSWER_TIMEOUT_S, return_exceptions=True)
        except CALL_FAILED as error:
            logger.warning("the other ingresses cannot be asked", extra={"error": str(error)})
            return Found(self._own.find(query), silent_ingresses=1)
        records = self._own.find(query)
        silent = 0
        for answer in answers:
            try:
                records += decode_records(answer)
            except (msgspec.DecodeError, TypeError):  # an error in place of an answer, or another version's
                silent += 1
        return Found(query.best(records), silent)
