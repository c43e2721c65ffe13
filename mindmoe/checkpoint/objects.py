"""Checkpoints in an S3-compatible object store: the manifest is uploaded last, so a step that has one is whole.

Object stores have no rename; a reader looks for the manifest only. Every part is sent with its SHA-256, which the
store checks before it accepts the part; on the way back every block is verified before the step is published.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mindmoe.checkpoint import disk, store
from mindmoe.checkpoint.folder import MANIFEST, STEP, list_steps, read_manifest, step_name, step_of
from mindmoe.checkpoint.manifest import CorruptCheckpoint, parse
from mindmoe.checkpoint.reader import Checkpoint
from mindmoe.checkpoint.retention import complete_manifest
from mindmoe.host.errors import CheckpointError, UserError

SCHEME = "s3://"


class ObjectStore:
    """The steps of a run under a prefix of a bucket. Credentials come from where the library looks for them.

    Args:
        url: `s3://bucket/prefix`.
        endpoint: URL of the service, None for Amazon's.
        keep_last: newest steps that stay.

    Raises:
        UserError: the library is missing, or the URL names no bucket.
    """

    def __init__(self, url: str, endpoint: str | None, keep_last: int):
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise UserError(f"{url} needs boto3, which is not installed", "pip install 'mindmoe[s3]'") from None
        self.bucket, _, prefix = url.removeprefix(SCHEME).partition("/")
        if not self.bucket:
            raise UserError(f"checkpoint.durable.path={url} names no bucket", "write s3://bucket/prefix")
        self.url, self.prefix, self.keep_last = url, prefix.strip("/") + "/" if prefix.strip("/") else "", keep_last
        limits = Config(connect_timeout=20, read_timeout=60, retries={"max_attempts": 5})
        self._client: Any = boto3.client("s3", endpoint_url=endpoint, config=limits)

    def put(self, source: Path) -> str:
        """Uploads a step and returns its URL; older ones go afterwards.

        Raises:
            CheckpointError: it was not uploaded, or the step does not verify; a step without a manifest is no step.
        """
        with store.reading(source):
            manifest = read_manifest(source)
        with Checkpoint(source, manifest) as checkpoint:
            if problem := next(checkpoint.damage(), None):
                raise CheckpointError(f"{source} is not uploaded: {problem}", "run ckpt verify")
        name = step_name(manifest.step)
        with self._reported(f"upload {source} to {self.url}"):
            # The manifest of an earlier upload of this step would vouch for a mixture while files are replaced.
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name, MANIFEST))
            for file in (*(shard.file for shard in manifest.shards), MANIFEST):
                extra = {"ChecksumAlgorithm": "SHA256"}
                self._client.upload_file(str(source / file), self.bucket, self._key(name, file), ExtraArgs=extra)
                size = self._client.head_object(Bucket=self.bucket, Key=self._key(name, file))["ContentLength"]
                if size != (source / file).stat().st_size:
                    raise CheckpointError(f"{file} arrived in {self.url} with {size} bytes", "upload it again")
            for step in self.steps()[self.keep_last :]:
                self._delete(step_name(step))
        return f"{self.url.rstrip('/')}/{name}"

    def steps(self) -> list[int]:
        """Whole steps, newest first.

        Raises:
            CheckpointError: the store cannot be asked.
        """
        with self._reported(f"list {self.url}"):
            return sorted((step_of(Path(n)) for n, files in self._listed().items() if MANIFEST in files), reverse=True)

    def bring(self, root: Path, generation: str) -> Path | None:
        """Downloads and publishes the newest valid step that is newer than all complete ones in `root`.

        Args:
            root: the checkpoint folder of the run.
            generation: that claimed it.

        Returns:
            the published folder, None if the store holds nothing newer.

        Raises:
            CheckpointError: the store cannot be read, or all newer steps are damaged.
        """
        # Only complete steps count: one that is damaged here is a reason to fetch a sound one.
        have = max((step_of(path) for path in list_steps(root) if complete_manifest(path)), default=-1)
        damage = None
        for step in (step for step in self.steps() if step > have):
            try:
                return self._bring(step, root, generation)
            except CorruptCheckpoint as error:
                damage = error
        # With a step of its own the run can go on, so damage over there does not stop it.
        if damage is not None and have < 0:
            raise damage
        return None

    def _bring(self, step: int, root: Path, generation: str) -> Path:
        name = step_name(step)
        staging = store.begin(root, step, generation)
        try:
            with self._reported(f"download {self.url}/{name}"):
                self._client.download_file(self.bucket, self._key(name, MANIFEST), str(staging / MANIFEST))
                manifest = parse((staging / MANIFEST).read_bytes(), staging / MANIFEST)
                # `commit` writes it anew, last, with the generation of this run.
                (staging / MANIFEST).unlink()
                for shard in manifest.shards:
                    self._client.download_file(self.bucket, self._key(name, shard.file), str(staging / shard.file))
            with Checkpoint(staging, manifest) as copy:
                if problem := next(copy.damage(), None):
                    raise CorruptCheckpoint(f"{self.url}/{name} is damaged: {problem}")
            with disk.reported(f"publish checkpoint {step} in {root}"):
                for shard in manifest.shards:
                    disk.sync_file(staging / shard.file)
            return store.commit(root, staging, store.as_writer(manifest, generation))
        except BaseException:
            disk.remove(staging)
            raise

    def _key(self, name: str, file: str) -> str:
        return f"{self.prefix}{name}/{file}"

    def _listed(self) -> dict[str, set[str]]:
        """Files by the name of their step."""
        found: dict[str, set[str]] = {}
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix):
            for item in page.get("Contents", ()):
                name, _, file = item["Key"].removeprefix(self.prefix).partition("/")
                if STEP.fullmatch(name):
                    found.setdefault(name, set()).add(file)
        return found

    def _delete(self, name: str) -> None:
        """Removes a step, its manifest first, so that a half-deleted one is none."""
        files = sorted(self._listed().get(name, ()), key=lambda file: file != MANIFEST)
        for file in files:
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name, file))

    @contextmanager
    def _reported(self, doing: str) -> Iterator[None]:
        """Turns the library's errors inside the block into a CheckpointError."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
            raise CheckpointError(
                f"cannot {doing}: {error}", "check the bucket, checkpoint.durable.endpoint and the credentials"
            ) from error
