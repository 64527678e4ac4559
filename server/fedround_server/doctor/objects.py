"""The object store, if the files are in one."""

from fedround_server.blobs.objects import BucketUnusable, BucketUrl, check_place
from fedround_server.config import Settings
from fedround_server.doctor.finding import Finding


def check_objects(settings: Settings) -> Finding | None:
    """Checks that the files are where the server looks for them, and that their bucket can be used."""
    name = "object store"
    try:
        check_place(settings.data_dir, settings.objects)
        if not settings.objects:
            return None
        BucketUrl(settings.objects).check()
    except BucketUnusable as error:
        return Finding(name, "fail", f"{settings.objects}: {error}")
    except RuntimeError as error:
        return Finding(name, "fail", str(error))
    return Finding(name, "ok", f"{settings.objects} can be written, read, listed and deleted from")
