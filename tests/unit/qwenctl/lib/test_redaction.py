"""`qwenctl.lib.redaction`: the one list of secrets. Forms of tokens: see the node's log lines."""

from __future__ import annotations

import time

import pytest

from qwenctl.lib.redaction import is_secret, masked, redacted, secret_options


@pytest.mark.parametrize(
    "name",
    [
        *("node_secret", "HF_TOKEN", "DB_PASS", "redis-password", "hash", "AWS_CREDENTIALS"),
        *(
            "api-key",
            "token_profile",
            "OPENAI_API_KEY",
            "AWS_ACCESS_KEY_ID",
            "sshkey",
            "licensekey",
            "key",
            "Authorization",
            "Cookie",
        ),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "node_secret_file",
        "key-file",
        "ssl-keyfile",
        "monkey",
        "key_name",
        "key_pair_name",
        "PASSIVE",
        "PYTHONHASHSEED",
        "model",
    ],
)
def test_names_of_other_things(name: str) -> None:
    assert not is_secret(name)


def test_secrets_of_a_command() -> None:
    words = ["run", "--api-key", "a", "--hf-token=b=c", "--key", "--port", "80", "--password"]
    assert list(secret_options(words)) == [(2, "", "a"), (3, "--hf-token=", "b=c")]


def test_the_given_secrets_and_the_mask_of_a_text() -> None:
    assert redacted("a hush, b hush", ["hush", ""], "…") == "a …, b …"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:a@b:1/0", "redis://***@b:1/0"),
        ("http://user@host/?q=1", "http://***@host/?q=1"),
        ("GET /x?a=1&api_key=b&c=2", "GET /x?a=1&api_key=***&c=2"),
        ("https://s3/x?X-Amz-Signature=ab%2Bc&d=1", "https://s3/x?X-Amz-Signature=***&d=1"),
        ("&SecurityToken%3Dabc%26Action%3DStart", "&SecurityToken%3D***%26Action%3DStart"),
        ("https://s3/x?X-Amz-Credential=ab&d=1", "https://s3/x?X-Amz-Credential=***&d=1"),
        ("POST AccessKeyId=ab", "POST AccessKeyId=***"),
        ("session ASIAABCDEFGHIJKLMNOP", "session ***"),
        ("/x?monkeys", "/x?monkeys"),
    ],
)
def test_logins_and_parameters(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize("part", ["a", "?", "key", "&a=", "://", "-", "sk-", "AccessKeyId"])
def test_a_long_line_takes_no_long_time(part: str) -> None:
    begin = time.process_time()
    redacted("?" + part * (65536 // len(part)))
    assert time.process_time() - begin < 1.0


def test_settings() -> None:
    mask = "********"
    assert masked(
        {
            "node_secret": "a",
            "empty_secret": "",
            "node_secret_file": "/x",
            "keys": [{"name": "me", "hash": "b"}],
            "env": {"PLAIN": "c"},
            "tokens": ["d"],
            "command": ["x", "--token", "e", "--key=k", "--url=http://f@g"],
            "url": "http://h:i@j",
            "port": 1,
        }
    ) == {
        "node_secret": mask,
        "empty_secret": "",
        "node_secret_file": "/x",
        "keys": [{"name": "me", "hash": mask}],
        "env": {"PLAIN": mask},
        "tokens": [mask],
        "command": ["x", "--token", mask, f"--key={mask}", f"--url=http://{mask}@g"],
        "url": f"http://{mask}@j",
        "port": 1,
    }
