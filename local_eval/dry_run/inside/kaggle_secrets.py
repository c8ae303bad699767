"""Kaggle's module of this name, as it behaves where the internet is off: no secret can be read."""

import socket
import sys


class UserSecretsClient:
    """Every request ends as on Kaggle without internet."""

    def get_secret(self, label: str) -> str:
        self._offline()

    def get_bigquery_access_token(self) -> str:
        self._offline()

    def get_gcloud_credential(self) -> str:
        self._offline()

    def set_gcloud_credentials(self, *_, **__) -> None:
        self._offline()

    @staticmethod
    def _offline() -> None:
        try:
            sys.audit("socket.getaddrinfo", "kaggle.com", 443, 0, 0, 0)  # what the record of the network listens to
        except socket.gaierror as error:
            raise ConnectionError("Kaggle's secrets cannot be read: the internet is off") from error
