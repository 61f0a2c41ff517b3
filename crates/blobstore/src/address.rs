//! Addresses of object stores, as configurations name them.
//!
//! | address | store |
//! |---|---|
//! | `file:///absolute/directory` | a directory, created when missing; every write is fsynced |
//! | `memory:` | this process's memory (tests) |
//! | `s3://bucket/prefix?region=…&endpoint=…` | S3, or what speaks its protocol; both parameters may be missing |
//! | `gs://bucket/prefix` | Google Cloud Storage |
//! | `az://container/prefix` | Azure Blob Storage |
//!
//! What decides between writers is one operation, the creation of an object that is not there yet:
//!
//! | store | how it is asked | who is second gets |
//! |---|---|---|
//! | directory | a hard link to the finished file | `EEXIST` |
//! | S3 | `PUT` with `If-None-Match: *` | 412; 409 while another such request is under way, which says nothing about who wins |
//! | Google Cloud Storage | `PUT` with `x-goog-if-generation-match: 0` | 412 |
//! | Azure | `PUT` of a block blob with `If-None-Match: *` | 409 or 412 |
//!
//! Whatever the refusal, the object is looked at (`put`), so that no more than "at most one of the requests takes effect" is
//! needed of a store. S3 is tested (against a server that speaks its protocol, with lost requests and answers), as is the
//! directory; addresses, requests and parts of the other two are those of `object_store` and were never tried on the real thing.
//!
//! Credentials never stand in an address: they come from the environment that the provider's own tools use
//! (`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or an instance's role; `GOOGLE_APPLICATION_CREDENTIALS`;
//! `AZURE_STORAGE_ACCOUNT_NAME` and `AZURE_STORAGE_ACCOUNT_KEY`).

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::{BlobError, Limits};

/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(5);

/// What an address leads to.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// Writes objects in parts that may be repeated one by one; a directory cannot.
    pub(crate) multipart: Option<Arc<dyn MultipartStore>>,
    /// Whether objects can carry the id of the attempt that wrote them.
    pub(crate) keeps_attributes: bool,
}

impl Opened {
    /// A store of objects with metadata, of which only what is below `prefix` is seen.
    fn below<T: ObjectStore + MultipartStore>(store: T, prefix: &str) -> Opened {
        match prefix {
            "" => Opened::of(store),
            _ => Opened::of(PrefixStore::new(store, prefix)),
        }
    }

    fn of<T: ObjectStore + MultipartStore>(store: T) -> Opened {
        let store = Arc::new(store);
        Opened {
            store: store.clone(),
            multipart: Some(store),
            keeps_attributes: true,
        }
    }
}

/// Opens the store at an address.
pub(crate) fn open(
    address: &str,
    limits: &Limits,
    environment: &[(String, String)],
) -> Result<Opened, BlobError> {
    let failed = |reason: String| BlobError::Address {
        address: address.to_owned(),
        reason,
    };
    if address == "memory:" {
        return Ok(Opened::of(InMemory::new()));
    }
    let url = Url::parse(address).map_err(|error| failed(error.to_string()))?;
    if url.scheme() == "file" {
        return directory(&url).map_err(failed);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(failed("credentials belong into the environment".to_owned()));
    }
    let bucket = url.host_str().unwrap_or_default();
    if matches!(url.scheme(), "s3" | "gs" | "az") && bucket.is_empty() {
        return Err(failed("the name of the bucket is missing".to_owned()));
    }
    let prefix = url.path().trim_matches('/');
    let opened = match url.scheme() {
        "s3" => s3(&url, bucket, limits, environment).map(|store| Opened::below(store, prefix)),
        "gs" => no_parameters(&url)
            .and_then(|()| text(gcs(bucket, limits).build()))
            .map(|store| Opened::below(store, prefix)),
        "az" => no_parameters(&url)
            .and_then(|()| text(azure(bucket, limits).build()))
            .map(|store| Opened::below(store, prefix)),
        other => Err(format!(
            "{other}: is not known: use file:///directory, s3://, gs:// or az://"
        )),
    };
    opened.map_err(failed)
}

fn directory(url: &Url) -> Result<Opened, String> {
    no_parameters(url)?;
    let directory = url
        .to_file_path()
        .map_err(|()| "the path is not absolute".to_owned())?;
    std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
    let store = LocalFileSystem::new_with_prefix(&directory).map_err(|error| error.to_string())?;
    Ok(Opened {
        store: Arc::new(store.with_fsync(true)),
        multipart: None,
        keeps_attributes: false,
    })
}

fn no_parameters(url: &Url) -> Result<(), String> {
    match url.query_pairs().next() {
        None => Ok(()),
        Some((key, _)) => Err(format!("parameter `{key}` is not known")),
    }
}

fn s3(
    url: &Url,
    bucket: &str,
    limits: &Limits,
    environment: &[(String, String)],
) -> Result<AmazonS3, String> {
    let mut builder = AmazonS3Builder::new();
    for (key, value) in environment {
        let key = key.to_ascii_lowercase();
        // Others that begin so are for other tools.
        if key.starts_with("aws_")
            && let Ok(key) = key.parse::<AmazonS3ConfigKey>()
        {
            builder = builder.with_config(key, value);
        }
    }
    let mut builder = builder
        .with_bucket_name(bucket)
        .with_retry(no_retries())
        .with_client_options(client(limits));
    for (key, value) in url.query_pairs() {
        builder = match key.as_ref() {
            "region" => builder.with_region(value),
            "endpoint" => builder
                .with_allow_http(value.starts_with("http://"))
                .with_endpoint(value),
            other => {
                return Err(format!(
                    "parameter `{other}` is not known: there are region and endpoint"
                ));
            }
        };
    }
    text(builder.build())
}

fn gcs(bucket: &str, limits: &Limits) -> GoogleCloudStorageBuilder {
    GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_retry(no_retries())
        .with_client_options(client(limits))
}

fn azure(container: &str, limits: &Limits) -> MicrosoftAzureBuilder {
    MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_retry(no_retries())
        .with_client_options(client(limits))
}

fn text<T>(built: Result<T, object_store::Error>) -> Result<T, String> {
    built.map_err(|error| error.to_string())
}

/// Attempts are repeated one level up, where it is known what an answer that never came may mean.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

fn client(limits: &Limits) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(limits.attempt)
        .with_connect_timeout(CONNECT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(address: &str) -> String {
        match open(address, &Limits::default(), &[]) {
            Err(BlobError::Address { reason, .. }) => reason,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{address} was opened"),
        }
    }

    #[test]
    fn a_wrong_address_is_said_clearly() {
        for (address, said) in [
            ("s4://bucket", "s4: is not known"),
            ("s3:///prefix", "bucket is missing"),
            ("s3://bucket?zone=1", "`zone` is not known"),
            (
                "s3://user:secret@bucket",
                "credentials belong into the environment",
            ),
            ("gs://bucket?region=x", "`region` is not known"),
            ("file:///tmp?x=1", "`x` is not known"),
            ("directory", "relative URL"),
        ] {
            let reason = reason(address);
            assert!(reason.contains(said), "{address}: {reason}");
        }
    }

    #[tokio::test]
    async fn stores_of_three_providers_are_opened_without_a_call() {
        let limits = Limits::default();
        for address in [
            "s3://bucket/some/prefix?region=eu-central-1&endpoint=http://127.0.0.1:9",
            "s3://bucket",
            "gs://bucket/prefix",
        ] {
            assert!(open(address, &limits, &[]).is_ok(), "{address}");
        }
        // Azure's account is part of the environment.
        if std::env::var_os("AZURE_STORAGE_ACCOUNT_NAME").is_none() {
            assert!(reason("az://container/prefix").to_lowercase().contains("account"));
        }
    }
}
