"""What others need of an attempt under way: the supervisor, and whoever holds the pipeline's lock next."""

from __future__ import annotations

import time
from dataclasses import dataclass

from towline.lookout import Lookout
from towline.pipeline import Pipeline
from towline.target import Checkpoint
from towline.target.postgres.writer import PostgresTarget
from towline.target.postgres.writing_session import Session


@dataclass(slots=True)
class Handle:
    """What the supervisor may touch of an attempt under way, from other threads."""

    pipeline: Pipeline | None = None
    target: PostgresTarget | None = None
    lookout: Lookout | None = None

    def alive(self, within: float) -> bool:
        """Whether the loop turned within so many seconds, or the target was at work for it. True before it turns."""
        since = time.monotonic() - within
        pipeline, lookout = self.pipeline, self.lookout
        return pipeline is None or pipeline.beat > since or (lookout is not None and lookout.worked > since)

    @property
    def session(self) -> Session | None:
        """The attempt's session at the target, for the next attempt to end."""
        return self.target.session if self.target is not None else None

    def abort(self) -> None:
        """End a call to the target that does not return: the transaction in hand is abandoned."""
        if self.target is not None:
            self.target.close()


def stream_name(checkpoint: Checkpoint) -> str:
    """The application name of the stream that belongs to a checkpoint, the same for every daemon of the pipeline.

    Whoever holds the pipeline's lock may end a walsender of that name: its daemon has lost the lock, and its line may
    be dead without the server's knowing. A pipeline of the same name with another target has another.
    """
    made = checkpoint.created_at
    token = int(made.timestamp() * 1_000_000) & 0xFFFFFFFF if made is not None else 0
    return f"towline {checkpoint.slot[:40]} {token:08x}"
