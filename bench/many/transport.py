"""`attempts.Transport` over data channels alone: production's, without Serve's calls beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serve_app.protocol.data_channel import DataChannel
from serve_app.protocol.errors import ReplicaLost
from serve_app.protocol.messages import AttemptRequest, Frame, OnFrame, ReplicaInfo, decode_info
from serve_app.protocol.paced_reads import PacedReads


class ChannelTransport:
    """The replicas are those of `listed`, encoded, as Serve's calls would bring them once a second."""

    def __init__(self, ingress_id: str) -> None:
        self.listed: Sequence[bytes] = ()
        self.frame_count = 0
        self._ingress_id = ingress_id
        self._reads = PacedReads()
        self._channels: dict[str, DataChannel] = {}

    async def replicas(self) -> tuple[Sequence[ReplicaInfo], bool]:
        """See `Transport`."""
        return [decode_info(data) for data in self.listed], True

    async def follow(self, replica_id: str, on_frame: OnFrame) -> None:
        """See `Transport`."""
        infos, _ = await self.replicas()
        address = next((info.data_channel for info in infos if info.replica_id == replica_id), None)
        if address is None:
            raise ReplicaLost("it is not listed")
        try:
            channel = await DataChannel.open(address, replica_id, self._ingress_id, self._reads)
        except (OSError, TimeoutError) as error:
            raise ReplicaLost(str(error)) from error
        self._channels[replica_id] = channel

        def counted(frame: Frame) -> None:
            self.frame_count += 1
            on_frame(frame)

        try:
            await channel.follow(counted)
            raise ReplicaLost("the data channel broke")
        finally:
            del self._channels[replica_id]
            channel.close(ReplicaLost("the data channel broke"))

    async def run_attempt(self, replica_id: str, attempt: AttemptRequest) -> None:
        """See `Transport`."""
        channel = self._channels.get(replica_id)
        if channel is None:
            raise ReplicaLost("there is no channel")
        await channel.run(attempt)

    async def fetch_partial_output(self, resume_key: str) -> list[int]:  # noqa: ARG002  # no stream breaks here
        """See `Transport`."""
        return []

    async def wake(self) -> None:
        """See `Transport`. The engines are always there."""

    async def share_quarantine(self, quarantine: Mapping[str, float]) -> None:
        """See `Transport`."""
