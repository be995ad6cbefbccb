"""Who may talk to the embedded API server: its certificate, its bearer token, and the kubeconfig that carries both.

TLS is needed although the server only listens on the loopback: kubectl leaves the token of a kubeconfig out of requests
to a plain-http server. The certificate and the token live in the data folder (0600) so that a kubeconfig stays good
across restarts.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import secrets
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import yaml

VALID_DAYS = 365
RENEW_DAYS = 30
USER_SEPARATOR = "~"
"""What follows it in a token is the name that the client goes by; it is no character of a token made here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """Paths of the server's certificate and key, the CA that clients trust (PEM), and the bearer token."""

    certificate: Path
    key: Path
    authority: bytes
    token: str

    def ssl_context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        context.set_alpn_protocols(["http/1.1"])
        return context


def load_credentials(folder: Path, *, now: datetime, token: str | None = None) -> Credentials:
    """Reads the credentials kept in `folder`, making them (or renewing an old certificate) where needed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, key, token_file = folder / "server.crt", folder / "server.key", folder / "token"
    if not (key.exists() and certificate.exists() and _still_good(folder / "not-after", now)):
        not_after = now + timedelta(days=VALID_DAYS)
        certificate_pem, key_pem = _self_signed(now - timedelta(hours=1), not_after)
        write_private(key, key_pem)
        write_private(certificate, certificate_pem)
        write_private(folder / "not-after", not_after.isoformat().encode())
    if token is None:
        token = token_file.read_text() if token_file.exists() else secrets.token_urlsafe(32)
    write_private(token_file, token.encode())
    return Credentials(certificate=certificate, key=key, authority=certificate.read_bytes(), token=token)


def write_kubeconfig(path: Path, *, url: str, authority: bytes, token: str, name: str = "devcluster") -> None:
    """Writes a kubeconfig (0600) whose only context, `name`, is this server."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": name,
                "cluster": {"server": url, "certificate-authority-data": base64.b64encode(authority).decode()},
            }
        ],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": "default"}}],
        "current-context": name,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, yaml.safe_dump(config, sort_keys=False).encode())


def write_private(path: Path, content: bytes) -> None:
    """Replaces `path` in one step; nobody but the owner can ever read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    temporary.replace(path)


def _still_good(file: Path, now: datetime) -> bool:
    if not file.exists():
        return False
    not_after = datetime.fromisoformat(file.read_text())
    return not_after - now > timedelta(days=RENEW_DAYS)


def _self_signed(not_before: datetime, not_after: datetime) -> tuple[bytes, bytes]:
    # Imported here: a restart with a certificate at hand does not pay for it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "embedded API server")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem
