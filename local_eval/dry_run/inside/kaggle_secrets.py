"""Kaggle's module of this name, as it behaves where the internet is off: no secret can be read or set."""


class UserSecretsClient:
    """Every request ends as on Kaggle without internet."""

    def get_secret(self, label: str = "") -> str:
        raise ConnectionError("Kaggle's secrets cannot be read: the internet is off when a submission is scored")

    def get_gcloud_credential(self) -> str:
        return self.get_secret()

    def set_gcloud_credentials(self, *_, **__) -> None:
        self.get_secret()
