"""Keys beside the store, and what is sealed with them.

A folder of their own (0700; `<store>.keys/` beside a SQLite file) holds `master` (wraps every item's key) and `pepper`
(keys pseudonyms, fingerprints and the digests of API keys), each 32 random bytes, 0600. They never lie in the store: a
copy of the database alone opens nothing. Erasing a subject's row destroys its key and salt, and with them every body
and every guess at a commitment.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from twolane.domain.records import Subject
from twolane.errors import StoreError

_KEY, _SALT, _NONCE = 32, 16, 12
_BLOCK = 64


class Vault:
    """Seals and opens bodies; makes pseudonyms. One per store."""

    def __init__(self, master: bytes, pepper: bytes) -> None:
        self._master, self._pepper = AESGCM(master), pepper
        block = pepper.ljust(_BLOCK, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))
        self.mark_again = functools.lru_cache(maxsize=1024)(self.mark)
        """`mark` of what many steps share: remembered."""

    @classmethod
    def open(cls, folder: Path, *, is_new: bool) -> Vault:
        """The keys in `folder`; made if the store `is_new`.

        Raises:
            StoreError: the store is there but its keys are not, so nothing in it could be read.
        """
        if is_new:
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise StoreError(f"the keys' folder {folder} cannot be made: {error.strerror}") from None
            for name in ("master", "pepper"):
                _make_key(folder / name)
        try:
            master, pepper = ((folder / name).read_bytes() for name in ("master", "pepper"))
        except OSError:
            raise StoreError(
                f"the store's keys are missing: {folder} must hold master and pepper. Bring them back from the "
                "backup, or from another machine of this store; without them its bodies cannot be read"
            ) from None
        if len(master) != _KEY or len(pepper) != _KEY:
            raise StoreError(f"the keys in {folder} are damaged: master and pepper have {_KEY} bytes each")
        return cls(master, pepper)

    def pseudonym(self, *parts: str) -> str:
        """A keyed name for these parts: the same for the same parts, telling nothing without the pepper."""
        return self.keyed("\x00".join(parts).encode())[:32]

    def step_salt(self, step: str) -> bytes:
        """The salt of a step whose body is not kept: 16 bytes, the same for the same step. BLAKE2 keyed by the pepper:
        an HMAC of OpenSSL hands the interpreter's lock to another thread each time."""
        return hashlib.blake2b(step.encode(), key=self._pepper, person=b"step salt", digest_size=16).digest()

    def mark(self, data: bytes) -> str:
        """16 digits that tell these bytes from others, and say nothing of them without the pepper. BLAKE2,
        as for salts: a step makes a dozen."""
        return hashlib.blake2b(data, key=self._pepper, person=b"mark", digest_size=8).hexdigest()

    def keyed(self, data: bytes) -> str:
        """HMAC-SHA256 under the pepper (RFC 2104), hex. It goes on from a state that holds the key already: an HMAC of
        OpenSSL takes three times as long, and hands the interpreter's lock to another thread each time."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        return outer.hexdigest()

    def new_subject(self, tenant: str, name: str) -> tuple[Subject, bytes]:
        """A subject for item `name` with a fresh key and salt, and the wrapped form the store keeps."""
        identity = self.pseudonym("subject", tenant, name)
        key, salt, nonce = os.urandom(_KEY), os.urandom(_SALT), os.urandom(_NONCE)
        wrapped = nonce + self._master.encrypt(nonce, key + salt, identity.encode())
        return Subject(identity, key, salt), wrapped

    def subject(self, row: Mapping[str, Any], *, column: str = "id") -> Subject:  # Any: a database row
        """The subject of a row that holds its id (under `column`) and `wrapped`."""
        identity, wrapped = str(row[column]), bytes(row["wrapped"])
        try:
            opened = self._master.decrypt(wrapped[:_NONCE], wrapped[_NONCE:], identity.encode())
        except InvalidTag:
            raise StoreError("a body's key does not open: the keys beside the store belong to another one") from None
        return Subject(identity, opened[:_KEY], opened[_KEY:])


class _Nonces:
    """Random nonces from a pool: the system is asked for 341 at a time, since asking hands the interpreter's lock to
    another thread each time. A fork forgets them, so that no two processes use the same."""

    def __init__(self) -> None:
        self._pool: Iterator[bytes] = iter(())
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self) -> bytes:
        for nonce in self._pool:
            return nonce
        drawn = os.urandom(341 * _NONCE)
        self._pool = iter([drawn[at : at + _NONCE] for at in range(0, len(drawn), _NONCE)])
        return self()

    def _forget(self) -> None:
        self._pool = iter(())


_new_nonce = _Nonces()


def seal(subject: Subject, body: bytes) -> bytes:
    """Encrypt a body under its subject's key (AES-256-GCM, random nonce in front)."""
    nonce = _new_nonce()
    return nonce + AESGCM(subject.key).encrypt(nonce, body, subject.id.encode())


def unseal(subject: Subject, sealed: bytes) -> bytes:
    """Decrypt a body.

    Raises:
        StoreError: it was changed, or belongs to another subject.
    """
    try:
        return AESGCM(subject.key).decrypt(sealed[:_NONCE], sealed[_NONCE:], subject.id.encode())
    except InvalidTag:
        raise StoreError("a body in the store was changed: it does not open with its key") from None


def _make_key(path: Path) -> None:
    """Whole or not at all, and once: of two starts at the same moment the first one's key stays."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(os.urandom(_KEY))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
