"""Blobs in an object store, such as S3."""

from fedround_server.blobs.objects.blobs import ObjectBlobs
from fedround_server.blobs.objects.environment import exposed_credentials
from fedround_server.blobs.objects.files import ObjectFiles
from fedround_server.blobs.objects.place import check_place, read_place, write_place
from fedround_server.blobs.objects.s3 import BucketUnusable, BucketUrl, check_bucket

__all__ = [
    "BucketUnusable",
    "BucketUrl",
    "ObjectBlobs",
    "ObjectFiles",
    "check_bucket",
    "check_place",
    "exposed_credentials",
    "read_place",
    "write_place",
]
