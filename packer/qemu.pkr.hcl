# Bakes a slot's root in a virtual machine, over ssh, by the very role that the chroot bake runs (ansible/roles/bake).
#
#   image/build --driver packer --keys KEYS
#
# makes everything ready for it and takes what it leaves (image/bake): a disk that is one ext4 file system, its kernel, a key,
# and words for the kernel. Packer from 1.11 on brings no plugins: `packer plugins install github.com/hashicorp/qemu`
# and `github.com/hashicorp/ansible` before.

variable "work" {
  type        = string
  description = "Directory with base.raw, kernel, initrd, key and values.json; the result is put there: result/root.raw."
}

variable "ansible" {
  type        = string
  description = "The program ansible-playbook."
}

variable "words" {
  type        = string
  description = "Words for the kernel's command line: the machine's network, the key that it lets in."
}

variable "accelerator" {
  type        = string
  description = "tcg works everywhere, kvm where the machine has it."
  default     = "tcg"
}

source "qemu" "root" {
  iso_url          = "${var.work}/base.raw"
  iso_checksum     = "none"
  disk_image       = true
  skip_resize_disk = true
  format           = "raw"
  output_directory = "${var.work}/result"
  vm_name          = "root.raw"

  machine_type   = "q35"
  accelerator    = var.accelerator
  memory         = 1024
  cpus           = 1
  disk_interface = "virtio"
  disk_cache     = "unsafe"
  net_device     = "virtio-net-pci"
  headless       = true
  qemuargs = [
    ["-cpu", "max"],
    ["-display", "none"],
    ["-serial", "file:${var.work}/serial"],
    ["-device", "virtio-rng-pci"],
    ["-device", "virtio-net-pci,netdev=user.0"],
    ["-netdev", "user,id=user.0,restrict=on,hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22"],
    ["-kernel", "${var.work}/kernel"],
    ["-initrd", "${var.work}/initrd"],
    # Nothing that a first boot writes: the disk stays what was put on it, and what the role makes of it.
    ["-append", join(" ", [
      "root=/dev/vda rw console=ttyS0,115200 quiet panic=10 systemd.firstboot=no",
      "systemd.wants=systemd-network-generator.service systemd.wants=systemd-networkd.service",
      "systemd.condition_first_boot=no systemd.condition_needs_update=no systemd.mask=apt-daily.timer systemd.mask=apt-daily-upgrade.timer",
      "systemd.mask=e2scrub_all.timer systemd.mask=dpkg-db-backup.timer", var.words,
    ])],
  ]

  communicator         = "ssh"
  ssh_username         = "root"
  ssh_private_key_file = "${var.work}/key"
  ssh_timeout          = "15m"
  boot_wait            = "1s"
  shutdown_command     = "systemctl poweroff"
  shutdown_timeout     = "10m"
}

build {
  sources = ["source.qemu.root"]

  provisioner "ansible" {
    command         = var.ansible
    playbook_file   = "ansible/bake.yml"
    user            = "root"
    use_proxy       = false
    extra_arguments = ["-e", "ansible_python_interpreter=/usr/bin/python3", "-e", "@${var.work}/values.json"]
  }
}
