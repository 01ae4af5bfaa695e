# Makes an AMI of the disk image that image/build made: the very image that ships, imported, not installed again.
#
#   packer build -var raw=target/image/samovar-0.1.0.raw -var version=0.1.0 -var bucket=BUCKET packer/aws.pkr.hcl
#
# Credentials as the AWS tools find them; the account needs the role `vmimport`. The site file is written into the image before
# (`image/site write`), so that each box has an image of its own, or lies on a volume made of a stick's image.

variable "raw" {
  type        = string
  description = "Disk image, as image/build made it."
}

variable "version" {
  type        = string
  description = "Version of the image."
}

variable "bucket" {
  type        = string
  description = "Bucket through which the image is imported."
}

variable "region" {
  type    = string
  default = "eu-central-1"
}

source "null" "image" {
  communicator = "none"
}

build {
  sources = ["source.null.image"]

  post-processors {
    post-processor "artifice" {
      files = [var.raw]
    }
    post-processor "amazon-import" {
      region         = var.region
      s3_bucket_name = var.bucket
      format         = "raw"
      ami_name       = "samovar-${var.version}"
      license_type   = "BYOL"
      tags = {
        Name    = "samovar"
        Version = var.version
      }
    }
  }
}
