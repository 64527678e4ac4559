"""Blobs in an object store, such as S3."""

from fedround_server.blobs.objects.blobs import ObjectBlobs
from fedround_server.blobs.objects.bucket import BucketError
from fedround_server.blobs.objects.s3 import BucketUrl, check_bucket

__all__ = ["BucketError", "BucketUrl", "ObjectBlobs", "check_bucket"]
