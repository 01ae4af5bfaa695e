# Makes an image of Google Compute Engine of the disk image that image/build made: the very image that ships, imported.
#
#   packer build -var raw=target/image/samovar-0.1.0.raw -var version=0.1.0 -var project=PROJECT -var bucket=BUCKET packer/gcp.pkr.hcl
#
# Run where this repository is. Credentials as Google's tools find them; the site file as packer/aws.pkr.hcl says. What is imported is
# a tar file of `disk.raw`, a whole number of GiB long: packer/gcp-tar makes it.

variable "raw" {
  type        = string
  description = "Disk image, as image/build made it."
}

variable "version" {
  type        = string
  description = "Version of the image."
}

variable "project" {
  type        = string
  description = "Project that the image is for."
}

variable "bucket" {
  type        = string
  description = "Bucket through which the image is imported."
}

variable "account_file" {
  type        = string
  description = "Key of a service account; empty: as Google's tools find it."
  default     = ""
}

locals {
  tar = "samovar-${var.version}.tar.gz"
}

source "null" "image" {
  communicator = "none"
}

build {
  sources = ["source.null.image"]

  post-processors {
    post-processor "shell-local" {
      inline = ["packer/gcp-tar ${var.raw} ${local.tar}"]
    }
    post-processor "artifice" {
      files = [local.tar]
    }
    post-processor "googlecompute-import" {
      account_file      = var.account_file
      project_id        = var.project
      bucket            = var.bucket
      image_name        = "samovar-${replace(var.version, ".", "-")}"
      image_description = "Samovar ${var.version}"
      image_family      = "samovar"
      image_guest_os_features = ["UEFI_COMPATIBLE", "VIRTIO_SCSI_MULTIQUEUE"]
    }
  }
}
